"""Questions of write-only managers, against nodes in the same process, over real links."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from gevent_mesh import EmitterError, GeventMeshManager, PayloadError, PayloadTooLarge, asking
from gevent_mesh.cluster.results import Outcome, SocketList
from gevent_mesh.emitter import questions
from gevent_mesh.emitter.courier import Courier
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.frames import Role
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from tests.net.nodes import HandMade
from tests.paper import PaperNode, paper_mesh
from tests.support import eventually
from tests.test_emitter import NOBODY, link_of, relay_of, sends, spoofed, stranger


@pytest.fixture
def nodes() -> Iterator[list[PaperNode]]:
    with paper_mesh(3) as made:
        yield made


@pytest.fixture
def emitter(nodes: list[PaperNode]) -> Iterator[GeventMeshManager]:
    made = GeventMeshManager(nodes[0].manager.config.discovery[0], write_only=True)
    yield made
    made.close(0)


def courier_of(emitter: GeventMeshManager) -> Courier:
    assert emitter._emitter is not None
    assert emitter._emitter._courier is not None
    return emitter._emitter._courier


def whole(outcome: Any, expected: int = 3) -> Any:
    """An answer that must be complete."""
    assert isinstance(outcome, Outcome)
    assert (outcome.missing_nodes, outcome.expected, outcome.received) == ((), expected, expected)
    assert outcome.is_complete
    return outcome


def unknown(outcome: Any) -> None:
    """An answer of which nobody knows how much is missing."""
    assert (outcome.missing_nodes, outcome.expected, outcome.received) == ((), 1, 0)
    assert not outcome.is_complete


def all_calls(emitter: GeventMeshManager, timeout: float) -> list[Callable[[], Any]]:
    return [
        lambda: emitter.fetch_sockets(timeout=timeout),
        lambda: emitter.count_sockets(timeout=timeout),
        lambda: emitter.list_rooms(timeout=timeout),
        lambda: emitter.call("event", timeout=timeout),
        lambda: emitter.server_side_call("event", timeout=timeout),
        lambda: emitter.sockets_join("room", timeout=timeout),
        lambda: emitter.sockets_leave("room", timeout=timeout),
        lambda: emitter.disconnect_sockets(timeout=timeout),
    ]


class TestQuestions:
    def test_sockets_of_all_nodes_are_fetched_and_can_be_used(
        self, nodes: list[PaperNode], emitter: GeventMeshManager
    ) -> None:
        sids = [
            node.connects("eio", auth={"n": n}, REMOTE_ADDR=f"10.0.0.{n}", saved_session={"name": name})
            for n, (node, name) in enumerate(zip(nodes, ("Eve", "Ada", "Bob"), strict=True))
        ]
        nodes[1].server.enter_room(sids[1], ("a", 1))
        sockets = whole(emitter.fetch_sockets())
        assert isinstance(sockets, SocketList)
        assert {socket.sid: socket.node for socket in sockets} == {
            sid: node.manager.uid for sid, node in zip(sids, nodes, strict=True)
        }
        (ada,) = whole(emitter.fetch_sockets(room=[("a", 1)]))
        assert (ada.rooms, ada.data, ada.handshake.address, ada.handshake.auth) == (
            (sids[1], ("a", 1)), {"name": "Ada"}, "10.0.0.1", {"n": 1},
        )  # fmt: skip
        ada.emit("hello", 1)
        ada.join("b")
        ada.leave([("a", 1)])
        assert emitter.flush()
        assert nodes[1].sent == [("eio", '2["hello",1]')]
        assert nodes[1].server.rooms(sids[1]) == [sids[1], "b"]
        ada.disconnect()
        eventually(lambda: not nodes[1].manager.is_connected(sids[1], "/"))

    def test_selections_counts_and_rooms(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        for number in range(9):
            sid = nodes[number % 3].connects(f"eio {number}")
            nodes[number % 3].server.enter_room(sid, "even" if number % 2 == 0 else "odd")
        assert whole(emitter.count_sockets()) == 9
        assert whole(emitter.count_sockets("even")) == 5
        assert whole(emitter.count_sockets(except_rooms="even")) == 4
        assert whole(emitter.count_sockets(["even", "odd"], "odd")) == 5
        assert whole(emitter.count_sockets(namespace="/other")) == 0
        assert whole(emitter.list_rooms()) == {"even": 5, "odd": 4}
        assert whole(emitter.list_rooms("odd")) == {"odd": 4}
        assert emitter.fetch_sockets([]) == []
        assert emitter.fetch_sockets([]).is_complete

    def test_it_counts_servers(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        nodes[0].server.on("event", print, namespace="/chat")
        nodes[0].connects("eio")
        eventually(lambda: emitter.server_count("/chat") == 1, 15)
        assert emitter.server_count("/nobody's") == 0

    def test_an_answer_of_many_pieces(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        sids = {node.connects(f"eio {n}", QUERY_STRING="q=" + "x" * 500) for node in nodes for n in range(300)}
        for node in nodes:
            for sid in sids:
                if node.manager.is_connected(sid, "/"):
                    node.server.enter_room(sid, f"room of {sid}")
        assert {socket.sid for socket in whole(emitter.fetch_sockets())} == sids
        assert whole(emitter.list_rooms()) == {f"room of {sid}": 1 for sid in sids}

    def test_what_was_published_before_is_done(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        for node in nodes:
            node.connects("eio")
        for number in range(20):
            emitter.sockets_join(f"room {number}")
            assert whole(emitter.count_sockets(f"room {number}")) == 3

    def test_wrong_parameters(self, emitter: GeventMeshManager) -> None:
        with pytest.raises(ValueError, match="timeout"):
            emitter.count_sockets(timeout=0)
        with pytest.raises(ValueError, match="None"):
            emitter.sockets_join(None, timeout=1.0)


class TestCommands:
    def test_commands_are_counted(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        sids = [node.connects("eio") for node in nodes]
        assert whole(emitter.sockets_join(["a", "b"], room=sids[:2], timeout=5.0)) == 2
        assert whole(emitter.sockets_leave("a", except_rooms=sids[0], timeout=5.0)) == 2
        assert nodes[0].server.rooms(sids[0]) == [sids[0], "a", "b"]
        assert nodes[1].server.rooms(sids[1]) == [sids[1], "b"]
        assert whole(emitter.disconnect_sockets("b", timeout=5.0)) == 2
        assert whole(emitter.count_sockets()) == 1

    def test_a_command_that_a_node_refuses_ends_incomplete(
        self, nodes: list[PaperNode], emitter: GeventMeshManager, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert emitter.wait_for_peers(1)
        relay = relay_of(emitter, nodes)
        sids = [relay.connects("one"), relay.connects("two")]
        unknown(emitter.sockets_join(sids[0], room=sids[1], timeout=5.0))
        assert "ValueError" in caplog.text


class TestAnswers:
    def test_every_node_answers_a_server_side_call(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        for node in nodes:
            node.manager.on("add", lambda a, b, uid=node.manager.uid: [uid, a + b])
        answers = whole(emitter.server_side_call("add", 1, 2))
        assert answers == {node.manager.uid: [node.manager.uid, 3] for node in nodes}
        assert answers.errors == {}

    def test_what_goes_wrong_at_nodes_is_told(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        assert emitter.wait_for_peers(1)
        relay = relay_of(emitter, nodes)
        one, two = (node for node in nodes if node is not relay)
        one.manager.on("reload", lambda: 1 // 0)
        two.manager.on("reload", lambda: 2)
        answers = emitter.server_side_call("reload")
        assert answers == {two.manager.uid: 2}
        assert set(answers.missing_nodes) == {relay.manager.uid, one.manager.uid}
        assert (answers.expected, answers.received) == (3, 1)
        assert "no handler" in answers.errors[relay.manager.uid]
        assert "ZeroDivisionError" in answers.errors[one.manager.uid]
        relay.manager.on("reload", object)
        assert "cannot be sent" in emitter.server_side_call("reload").errors[relay.manager.uid]
        relay.manager.on("reload", lambda: gevent.sleep(60))
        slow = emitter.server_side_call("reload", timeout=0.5)
        assert relay.manager.uid in slow.missing_nodes
        assert relay.manager.uid not in slow.errors

    def test_call_returns_what_every_client_answers(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        for node in nodes:
            node.connects("eio")
        calling = gevent.spawn(emitter.call, "vote", ("tea", b"\x00"), timeout=5.0)
        for node, values in zip(nodes, ((), ([1],), (2, "two")), strict=True):
            node.answers("eio", "vote", *values)
        answers = whole(calling.get(timeout=5))
        assert sorted(answers, key=repr) == [(2, "two"), None, [1]] or sorted(answers, key=repr) == [
            (2, "two"), [1], None,
        ]  # fmt: skip

    def test_clients_that_do_not_answer_are_counted(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        nodes[0].connects("eio")
        nodes[1].connects("eio")
        calling = gevent.spawn(emitter.call, "vote", timeout=1.0)
        nodes[0].answers("eio", "vote", "yes")
        answers = calling.get(timeout=5)
        assert (answers, answers.expected, answers.received) == (["yes"], 2, 1)
        assert answers.missing_nodes == (nodes[1].manager.uid,)

    def test_what_cannot_be_encoded_raises_before_anybody_is_asked(
        self, nodes: list[PaperNode], emitter: GeventMeshManager
    ) -> None:
        heard: list[Any] = []
        nodes[0].manager.on("event", heard.append)
        nodes[0].connects("eio")
        with pytest.raises(PayloadError):
            emitter.server_side_call("event", object())
        with pytest.raises(PayloadError):
            emitter.call("event", object())
        with pytest.raises(PayloadTooLarge):
            emitter.call("event", "x" * 17 * 1024 * 1024)
        assert whole(emitter.count_sockets()) == 1
        assert (heard, nodes[0].sent) == ([], [])
        assert len(courier_of(emitter).questions) == 0


class TestFaults:
    def test_with_no_node_in_reach_every_answer_is_empty_and_incomplete(self) -> None:
        emitter = GeventMeshManager(NOBODY, write_only=True)
        try:
            for ask in all_calls(emitter, 0.1):
                began = time.monotonic()
                answer = ask()
                assert time.monotonic() - began < 1
                assert not answer
                unknown(answer)
            assert len(courier_of(emitter).questions) == 0
        finally:
            emitter.close(0)

    def test_a_closed_emitter_raises(self, emitter: GeventMeshManager) -> None:
        assert emitter.count_sockets() == 0
        emitter.close()
        for ask in all_calls(emitter, 1.0):
            with pytest.raises(EmitterError, match="closed"):
                ask()
        with pytest.raises(EmitterError, match="closed"):
            emitter.server_count()

    def test_closing_ends_what_waits(self, emitter: GeventMeshManager, nodes: list[PaperNode]) -> None:
        nodes[0].connects("eio")
        calling = gevent.spawn(emitter.call, "vote", timeout=60.0)
        nodes[0].gets("vote")
        emitter.close()
        unknown(calling.get(timeout=5))

    def test_a_question_that_waits_is_asked_when_there_is_a_node(self) -> None:
        with paper_mesh(1) as (node,):
            node.connects("eio")
            emitter = GeventMeshManager(node.manager.config.discovery[0], write_only=True)
            try:
                node.manager.stop()
                asking_ = gevent.spawn(emitter.count_sockets, timeout=20.0)
                eventually(lambda: emitter._emitter is not None and emitter._emitter._courier is not None)
                node.manager.start()
                assert whole(asking_.get(timeout=20), 1) == 1
            finally:
                emitter.close(0)

    def test_questions_are_asked_again_when_the_link_breaks_and_commands_are_not(
        self, nodes: list[PaperNode], emitter: GeventMeshManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for node in nodes:
            node.connects("eio")
        assert emitter.wait_for_peers(1)
        with monkeypatch.context() as patched:
            held: list[MessageType] = []
            # Nodes take the questions, and nobody ever answers.
            patched.setattr(asking.Asking, "_run", lambda _self, _asked, question: held.append(question.type))
            waiting = [gevent.spawn(ask) for ask in all_calls(emitter, 20.0)]
            eventually(lambda: len(held) == len(waiting))
        link_of(emitter).transport.abort()
        fetched, count, rooms, *commands = (greenlet.get(timeout=10) for greenlet in waiting)
        assert len(whole(fetched)) == 3
        assert whole(count) == 3
        assert whole(rooms) == {}
        for command in commands:
            unknown(command)
        assert len(courier_of(emitter).questions) == 0
        # Nobody was put into a room, or disconnected, by a command that was asked again.
        assert whole(emitter.list_rooms()) == {}
        assert whole(emitter.count_sockets()) == 3

    def test_a_node_that_stops_in_the_middle_is_replaced(
        self, nodes: list[PaperNode], emitter: GeventMeshManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert emitter.wait_for_peers(1)
        relay = relay_of(emitter, nodes)
        for node in nodes:
            node.connects("eio")
        monkeypatch.setattr(relay.manager._asking, "_run", lambda *_: None)
        waiting = gevent.spawn(emitter.fetch_sockets, timeout=20.0)
        eventually(lambda: relay.manager._asking._open.total() == 1)
        relay.manager.stop()
        fetched = whole(waiting.get(timeout=10), 2)
        assert {socket.node for socket in fetched} == {node.manager.uid for node in nodes if node is not relay}

    def test_an_answer_that_makes_no_sense_ends_the_question(
        self,
        nodes: list[PaperNode],
        emitter: GeventMeshManager,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for node in nodes:
            answers = node.manager._asking._answers
            monkeypatch.setitem(answers, MessageType.COUNT_SOCKETS, lambda *_: (Outcome(), [b"\xc1", b"\x80"]))
        unknown(emitter.count_sockets())
        # It is logged in the network thread, which may be a moment later.
        eventually(lambda: "makes no sense" in caplog.text)
        assert whole(emitter.fetch_sockets()) == []

    def test_what_is_told_of_a_question_that_is_over_is_dropped(self) -> None:
        opened = questions.Questions()
        question = questions.Question(MessageType.FETCH_SOCKETS, b"", lambda *_: True, 10.0, lambda _: None)
        opened.add(question)
        former = question.id
        asked: list[dict[str, Any]] = []

        def send(data: dict[str, Any]) -> bool:
            asked.append(data)
            return True

        opened.ask(send, 0.0)
        opened.unlinked()
        opened.replied(messages.replied(former, ["a"], 1, 0))
        assert not question.is_over
        opened.ask(send, 9.0)
        assert [data["requestId"] for data in asked] == [former, question.id]
        assert [data["timeout"] for data in asked] == [9.5, 0.75]
        opened.replied(messages.replied(question.id, [], 1, 1))
        assert question.is_over
        assert len(opened) == 0

    def test_a_node_is_asked_so_many_questions_at_a_time(self) -> None:
        opened = questions.Questions()
        made = [
            questions.Question(MessageType.SOCKETS_JOIN, b"", lambda *_: True, 10.0 + n, lambda _: None)
            for n in range(questions.MAX_ASKED + 2)
        ]
        for question in made:
            opened.add(question)
        opened.ask(lambda _: True, 0.0)
        assert [question.is_sent for question in made] == [True] * questions.MAX_ASKED + [False] * 2
        opened.replied(messages.reply_error(made[0].id, "no"))
        opened.ask(lambda _: False, 0.0)
        opened.ask(lambda _: True, 0.0)
        assert [question.is_sent for question in made[-2:]] == [True, False]
        opened.unlinked()
        # The last one was never asked: it still can be.
        assert len(opened) == 1
        opened.sweep(1000.0)
        assert len(opened) == 0


class TestSurroundings:
    def test_threads_and_greenlets_ask_at_once(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        for node in nodes:
            node.connects("eio")
        counts: list[Any] = []
        threads = [threading.Thread(target=lambda: counts.append(emitter.count_sockets())) for _ in range(50)]
        greenlets = [gevent.spawn(emitter.count_sockets) for _ in range(50)]
        for thread in threads:
            thread.start()
        gevent.joinall(greenlets)
        eventually(lambda: len(counts) == 50)
        assert counts == [3] * 50
        assert [greenlet.value for greenlet in greenlets] == [3] * 50
        assert all(count.is_complete for count in counts)
        for node in nodes:
            assert (node.manager._asking._open.total(), node.manager._asking._open_bytes) == (0, 0)

    def test_nobody_waits_in_an_event_loop_itself(self, emitter: GeventMeshManager) -> None:
        assert emitter.wait_for_peers(1)
        asked: list[Any] = []
        gevent.get_hub().loop.run_callback(lambda: asked.append(emitter.count_sockets()))
        eventually(lambda: asked)
        unknown(asked[0])

    def test_whoever_is_interrupted_leaves_nothing_behind(
        self, nodes: list[PaperNode], emitter: GeventMeshManager
    ) -> None:
        nodes[0].connects("eio")
        calling = gevent.spawn(emitter.call, "vote", timeout=60.0)
        nodes[0].gets("vote")
        calling.kill()
        assert len(courier_of(emitter).questions) == 0


# ---------------------------------------------------------------------- hostile emitters


def asks(made: HandMade, request_id: str, kind: MessageType, data: dict[str, Any], uid: str = "") -> None:
    inner = messages.encode(kind, uid or made.protocol._us.uid, "/", data)
    sends(made, MessageType.ASK, messages.ask(request_id, 30.0, inner))


def replies(made: HandMade, count: int) -> list[dict[str, Any]]:
    """The data of the REPLYs that came, once there are so many."""

    def came() -> list[dict[str, Any]]:
        return [e.data for e in made.events if isinstance(e, ClusterMessage) and e.type is MessageType.REPLY]

    with gevent.Timeout(5):
        while len(came()) < count:
            assert made.step()
    return came()


FETCH = messages.fetch_sockets(messages.options(), "inner")


class TestWhatItMayNotAsk:
    def test_a_question_and_its_answer(self, nodes: list[PaperNode]) -> None:
        made = stranger(nodes[0]).handshake()
        asks(made, "ab", MessageType.COUNT_SOCKETS, FETCH)
        first, last = replies(made, 2)
        assert last == messages.replied("ab", [], 3, 3)
        assert len(first["messages"]) == 1

    @pytest.mark.parametrize(
        ("kind", "data", "uid"),
        [
            (MessageType.FETCH_SOCKETS, FETCH, "f" * 16),
            (MessageType.BROADCAST, messages.broadcast(messages.options(), packet=["tick", 1]), ""),
            (MessageType.SOCKETS_JOIN, messages.sockets_join(messages.options(), ["a"]), ""),
            (MessageType.SOCKETS_JOIN, {"opts": messages.options(), "rooms": [None], "requestId": "a"}, ""),
            (MessageType.PRESENCE, {"version": 1}, ""),
            (MessageType.RELAYED, messages.relayed(1), ""),
            (MessageType.PUBLISH, messages.publish(1, b""), ""),
            (MessageType.ASK, messages.ask("a", 1.0, b""), ""),
        ],
    )
    def test_what_is_no_question_is_refused(
        self, nodes: list[PaperNode], kind: MessageType, data: dict[str, Any], uid: str
    ) -> None:
        nodes[0].connects("eio")
        made = stranger(nodes[0]).handshake()
        asks(made, "ab", kind, data, uid)
        (reply,) = replies(made, 1)
        assert reply["error"]
        assert spoofed(nodes[0]) == 1
        assert nodes[0].sent == []

    def test_what_is_malformed_costs_itself_only(self, nodes: list[PaperNode]) -> None:
        made = stranger(nodes[0]).handshake()
        for junk in (b"", b"\xc1", b"\x80", b"\x91" * 2000):
            sends(made, MessageType.ASK, messages.ask("ab", 1.0, junk))
        encoded = {"opts": messages.options(), "encoded": ["junk"], "codec": "json", "requestId": "a"}
        asks(made, "ab", MessageType.BROADCAST, encoded)
        asks(made, "ab", MessageType.BROADCAST, {**encoded, "codec": "nobody's"})
        assert all(reply["error"] for reply in replies(made, 6))
        asks(made, "cd", MessageType.COUNT_SOCKETS, FETCH)
        assert replies(made, 8)[-1] == messages.replied("cd", [], 3, 3)
        assert nodes[0].manager._asking._open.total() == 0

    def test_nodes_do_not_ask_like_emitters(self, nodes: list[PaperNode]) -> None:
        made = stranger(nodes[0], role=Role.NODE, uid="00000000000000a1").handshake()
        asks(made, "ab", MessageType.COUNT_SOCKETS, FETCH)
        eventually(lambda: spoofed(nodes[0]) == 1)
        assert nodes[0].manager._asking._open.total() == 0

    def test_open_questions_are_bounded(self, nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(asking, "MAX_OPEN_EACH", 3)
        monkeypatch.setattr(asking, "MAX_OPEN", 5)
        nodes[0].manager.on("wait", lambda: gevent.sleep(60))
        one, two = stranger(nodes[0], uid="00000000000000a1"), stranger(nodes[0], uid="00000000000000a2")
        data = messages.server_side_emit(["wait"], "inner")
        for made, refused in ((one, 2), (two, 3)):
            made.handshake()
            for _ in range(5):
                asks(made, "ab", MessageType.SERVER_SIDE_EMIT, data)
            assert ["too many" in reply["error"] for reply in replies(made, refused)] == [True] * refused
        assert nodes[0].manager._asking._open == {one.protocol._us.uid: 3, two.protocol._us.uid: 2}

    def test_the_bytes_of_open_questions_are_bounded(self, nodes: list[PaperNode]) -> None:
        made = stranger(nodes[0]).handshake()
        nodes[0].manager.on("wait", lambda _: gevent.sleep(60))
        limit = nodes[0].manager.config.outbox_bytes
        nodes[0].manager._asking._open_bytes = 2 * limit - 100
        asks(made, "ab", MessageType.SERVER_SIDE_EMIT, messages.server_side_emit(["wait", "x" * 100], "inner"))
        (reply,) = replies(made, 1)
        assert "too many" in reply["error"]

    def test_few_large_answers_are_made_at_a_time(
        self, nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        running, most = 0, 0

        def slowly(*_: Any, **__: Any) -> SocketList:
            nonlocal running, most
            running += 1
            most = max(most, running)
            gevent.sleep(0.01)
            running -= 1
            return SocketList(nodes[0].manager, "/")

        monkeypatch.setattr(nodes[0].manager, "fetch_sockets", slowly)
        made = stranger(nodes[0]).handshake()
        for _ in range(20):
            asks(made, "ab", MessageType.FETCH_SOCKETS, FETCH)
        assert len(replies(made, 20)) == 20
        assert most == asking.MAX_LARGE

    def test_nothing_is_sent_to_one_that_has_gone(self, nodes: list[PaperNode]) -> None:
        goes_on = gevent.event.Event()
        nodes[0].manager.on("wait", goes_on.wait)
        made = stranger(nodes[0]).handshake()
        asks(made, "ab", MessageType.SERVER_SIDE_EMIT, messages.server_side_emit(["wait"], "inner"))
        service = nodes[0].manager._asking
        eventually(lambda: service._open.total() == 1)
        mesh = nodes[0].manager.mesh
        assert mesh is not None
        peer = mesh.table.get(made.protocol._us.uid)
        assert peer is not None
        made.transport.abort()
        eventually(lambda: peer.link is None)
        goes_on.set()
        eventually(lambda: service._open.total() == 0)
        assert peer.session.next_sequence == 1
