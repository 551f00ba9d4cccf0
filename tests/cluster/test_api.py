"""Asking and commanding the cluster, with three nodes in one process. Real processes are in the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gevent_mesh import GeventMeshManager, PayloadError
from gevent_mesh.cluster import queries
from gevent_mesh.cluster.results import Outcome
from gevent_mesh.net import mesh as mesh_module
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.messages import MessageType
from tests.paper import PaperNode, paper_mesh
from tests.support import eventually


@pytest.fixture
def nodes() -> Iterator[list[PaperNode]]:
    with paper_mesh(3, callback_timeout=5.0, heartbeat_interval=0.2, heartbeat_timeout=0.6) as nodes:
        yield nodes


@pytest.fixture
def alone() -> Iterator[PaperNode]:
    node = PaperNode(GeventMeshManager([]))
    yield node
    node.manager.stop(0)


def complete(outcome: Outcome, expected: int) -> None:
    assert outcome.is_complete
    assert (outcome.missing_nodes, outcome.expected, outcome.received) == ((), expected, expected)


def cut_off(node: PaperNode) -> None:
    """Take a node away as a crash does: no goodbye, and discovery notices."""
    mesh = node.manager.mesh
    assert mesh is not None
    for client in mesh._discovery:
        assert client._connection is not None
        client._stopping = True
        client._connection.transport.abort()
    mesh._stopping = True
    assert mesh._listener is not None
    mesh._listener.stop()
    for link in list(mesh._connections):
        link.cut("as if it had died")


class TestFetchSockets:
    def test_tells_of_every_client_of_every_node(self, nodes: list[PaperNode]) -> None:
        sids = {
            node.connects(f"e{n}", REMOTE_ADDR=f"10.0.0.{n}", QUERY_STRING=f"a={n}&b=", auth={"token": n}): (node, n)
            for n, node in enumerate(nodes)
        }
        for sid, (node, n) in sids.items():
            node.server.enter_room(sid, f"room {n}")
            node.server.enter_room(sid, ("pair", n))
        for asking in nodes:
            sockets = asking.manager.fetch_sockets()
            complete(sockets, 3)
            assert {socket.sid for socket in sockets} == sids.keys()
            for socket in sockets:
                node, n = sids[socket.sid]
                assert (socket.namespace, socket.node) == ("/", node.manager.uid)
                assert set(socket.rooms) == {socket.sid, f"room {n}", ("pair", n)}
                assert socket.handshake.address == f"10.0.0.{n}"
                assert socket.handshake.query == {"a": str(n), "b": ""}
                assert socket.handshake.auth == {"token": n}
                assert socket.handshake.time > 1_600_000_000

    def test_selects_by_rooms_sids_and_namespaces(self, nodes: list[PaperNode]) -> None:
        asking, *_ = nodes
        sids = [node.connects(f"e{n}") for n, node in enumerate(nodes)]
        for node, sid in zip(nodes, sids, strict=True):
            node.server.enter_room(sid, "all")
        nodes[1].server.enter_room(sids[1], "one")

        def fetched(**options: Any) -> set[str]:
            return {socket.sid for socket in asking.manager.fetch_sockets(**options)}

        assert fetched(room="all") == set(sids)
        assert fetched(room=["one", "nobody"]) == {sids[1]}
        assert fetched(room="all", except_rooms="one") == {sids[0], sids[2]}
        assert fetched(room="all", except_rooms=[sids[0], "one"]) == {sids[2]}
        assert fetched(room=sids[2]) == {sids[2]}
        assert fetched(room=sids[0]) == {sids[0]}
        assert fetched(room=[]) == set()
        assert fetched(namespace="/other") == set()

    def test_tells_of_sessions_as_far_as_they_can_be_encoded(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        sid = other.connects("e")

        class Socket:
            session = {"/": {"name": "grüß", "raw": b"\x00", "set": {1}, "list": [1, {"a": None}], 5: "five"}}  # noqa: RUF012

        other.server.eio.sockets["e"] = Socket()
        other.server.environ["e"]["saved_session"] = {"name": "flask's", "flask": True, "large": "x" * 70_000}
        (socket,) = asking.manager.fetch_sockets(room=sid)
        del other.server.eio.sockets["e"]
        assert socket.data == {"name": "grüß", "raw": b"\x00", "list": [1, {"a": None}], "flask": True}

    def test_auth_that_is_large_or_has_no_form_is_not_kept(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        one, two = other.connects("one", auth={"large": "x" * 5000}), other.connects("two", auth={"huge": 2**70})
        auths = {socket.sid: socket.handshake.auth for socket in asking.manager.fetch_sockets()}
        assert auths == {one: None, two: None}

    def test_comes_in_pieces(self, nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(queries, "PIECE_SOCKETS", 2)
        asking, other, _ = nodes
        sids = {other.connects(f"e{n}") for n in range(7)}
        answers: list[Any] = []
        publish_to = other.manager._node.publish_to

        def note(*arguments: Any) -> None:
            answers.append(arguments)
            publish_to(*arguments)

        monkeypatch.setattr(other.manager._node, "publish_to", note)
        sockets = asking.manager.fetch_sockets()
        assert {socket.sid for socket in sockets} == sids
        assert len(sockets) == 7
        assert len(answers) == 4

    def test_sockets_can_be_used(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        sid = other.connects("e")
        (socket,) = asking.manager.fetch_sockets(room=sid)
        socket.emit("hello", {"a": 1})
        other.gets('2["hello",{"a":1}]')
        socket.join("a")
        socket.join(["b", "c"])
        eventually(lambda: set(other.server.rooms(sid)) == {sid, "a", "b", "c"})
        socket.leave("b")
        eventually(lambda: set(other.server.rooms(sid)) == {sid, "a", "c"})
        assert socket == asking.manager.fetch_sockets(room="a")[0]
        assert len({socket, *asking.manager.fetch_sockets(room="a")}) == 1
        socket.disconnect()
        eventually(lambda: not other.manager.is_connected(sid, "/"))
        assert asking.manager.fetch_sockets() == []

    def test_works_alone(self, alone: PaperNode) -> None:
        sid = alone.connects("e")
        sockets = alone.manager.fetch_sockets()
        assert [socket.sid for socket in sockets] == [sid]
        complete(sockets, 1)

    @pytest.mark.parametrize("timeout", [0, -1, None, "5", True, float("nan")])
    def test_a_timeout_that_is_none_is_refused(self, alone: PaperNode, timeout: Any) -> None:
        with pytest.raises(ValueError, match="timeout"):
            alone.manager.fetch_sockets(timeout=timeout)


class TestOddRooms:
    """Rooms have the names that clients ask for, if an application lets them; what cannot travel hides nobody."""

    ODD = ("\ud800", 2**70, ("pair", "\udfff"))

    def test_a_room_that_cannot_travel_hides_neither_its_clients_nor_other_rooms(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        sid = other.connects("e")
        for room in (*self.ODD, "plain"):
            other.server.enter_room(sid, room)
        with gevent.Timeout(5):
            (socket,) = asking.manager.fetch_sockets(timeout=30)
            assert set(socket.rooms) == {sid, "plain"}
            assert asking.manager.list_rooms(timeout=30) == {"plain": 1}

    def test_many_rooms_and_large_sessions_fit_into_the_smallest_outboxes(self) -> None:
        with paper_mesh(2, buffered_amount_threshold=64 * 1024) as (asking, other):
            for n in range(200):
                sid = other.connects(f"e{n}", QUERY_STRING="q=" + "x" * 500)
                for k in range(5):
                    other.server.enter_room(sid, f"{n} {k} " + "y" * 60)
            with gevent.Timeout(10):
                sockets, rooms = asking.manager.fetch_sockets(timeout=30), asking.manager.list_rooms(timeout=30)
            assert (len(sockets), len(rooms)) == (200, 1000)
            complete(sockets, 2)
            complete(rooms, 2)


class TestBeforeDiscoveryHasAnswered:
    @pytest.fixture
    def lost(self) -> Iterator[PaperNode]:
        node = PaperNode(GeventMeshManager("ws://127.0.0.1:1", ws_port=0))
        yield node
        node.manager.stop(0)

    def test_no_answer_is_complete(self, lost: PaperNode) -> None:
        sid = lost.connects("e")
        for ask in (lost.manager.fetch_sockets, lost.manager.count_sockets, lost.manager.list_rooms):
            outcome: Outcome = ask()
            assert not outcome.is_complete
        assert not lost.manager.server_side_call("event").is_complete
        assert lost.manager.fetch_sockets(room=sid).is_complete, "nobody else can have it"

    def test_call_waits_for_nobody_but_its_own_clients(self, lost: PaperNode) -> None:
        lost.connects("e")
        calling = gevent.spawn(lost.manager.call, "ask", timeout=30)
        lost.answers("e", "ask", 1)
        answers = calling.get(timeout=5)
        assert answers == [1]
        assert not answers.is_complete


class TestTheEnd:
    def test_leaving_ends_the_parts_of_others(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        other.connects("e")
        calling = gevent.spawn(asking.manager.call, "ask", timeout=30)
        other.gets("ask")
        asking.manager.stop(0)
        assert not calling.get(timeout=5).is_complete

    def test_what_was_asked_without_a_mesh_is_freed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mesh_module, "SWEEP_SECONDS", 0.05)
        node = PaperNode(GeventMeshManager([], callback_timeout=0.1))
        node.connects("e")
        node.manager.stop(0)
        for _ in range(5):
            node.server.emit("ask", 1, callback=print)
        assert len(node.manager._requests) == 5

        eventually(lambda: all(request.deadline < monotonic() for request in node.manager._requests._open.values()))
        node.server.emit("ask", 1, callback=print)
        assert len(node.manager._requests) == len(node.manager._acknowledgements._asked) == 1

    def test_asking_many_own_clients_ends_with_its_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        node = PaperNode(GeventMeshManager([]))
        for n in range(200):
            node.connects(f"e{n}")
        deliver = node.manager._clients.fanout.deliver_to

        def slowly(eio_sid: str, packet: Any) -> None:
            gevent.sleep(0.01)
            deliver(eio_sid, packet)

        monkeypatch.setattr(node.manager._clients.fanout, "deliver_to", slowly)
        with gevent.Timeout(1.5):
            answers = node.manager.call("ask", timeout=0.3)
        assert not answers.is_complete
        node.manager._acknowledgements.sweep(monotonic() + 1)
        assert not node.manager._acknowledgements._asked_by_sid
        assert all(len(numbers) == 1 for numbers in node.manager.callbacks.values())
        node.manager.stop(0)


class TestWhatIsMissing:
    def test_a_node_that_dies_in_the_middle_ends_its_part_at_once(
        self, nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asking, dying, other = nodes
        sids = {asking.connects("a"), other.connects("b")}
        dying.connects("c")
        monkeypatch.setattr(dying.manager._queries, "_answer_fetch", lambda *_: None)
        fetching = gevent.spawn(asking.manager.fetch_sockets, timeout=30)
        gevent.sleep(0)
        cut_off(dying)
        sockets = fetching.get(timeout=5)
        assert {socket.sid for socket in sockets} == sids
        assert sockets.missing_nodes == (dying.manager.uid,)
        assert (sockets.expected, sockets.received, sockets.is_complete) == (3, 2, False)

    def test_a_node_that_has_left_is_not_missing(self, nodes: list[PaperNode]) -> None:
        asking, leaving, _ = nodes
        leaving.manager.stop()
        eventually(lambda: len(asking.manager.peers) == 1)
        complete(asking.manager.count_sockets(), 2)

    def test_a_node_that_does_not_answer_is_waited_for_until_the_timeout(
        self, nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asking, silent, _ = nodes
        asking.connects("a")
        monkeypatch.setitem(silent.manager._node._handlers, MessageType.COUNT_SOCKETS, lambda *_: None)
        count = asking.manager.count_sockets(timeout=0.2)
        assert count == 1
        assert count.missing_nodes == (silent.manager.uid,)

    def test_a_member_that_cannot_be_reached_is_missing_and_not_waited_for(self, nodes: list[PaperNode]) -> None:
        asking, away, _ = nodes
        mesh = asking.manager.mesh
        assert mesh is not None
        gone = "0" * 16
        # Named by discovery, never linked, for longer than heartbeat_timeout.
        mesh._take_roster("another", {gone: "ws://127.0.0.1:1", away.manager.uid: away.manager.address}, True)
        eventually(lambda: not mesh.table.get(gone).present)  # type: ignore[union-attr]  # it was just named
        with gevent.Timeout(2):
            count = asking.manager.count_sockets(timeout=30)
        assert count.missing_nodes == (gone,)
        assert count.expected == 4

    def test_a_link_that_blinks_delays_an_answer_and_loses_nothing(self) -> None:
        with paper_mesh(2) as (asking, other):
            sid = other.connects("e")
            mesh = asking.manager.mesh
            assert mesh is not None
            mesh._links[other.manager.uid].cut("blink")
            sockets = asking.manager.fetch_sockets()
            complete(sockets, 2)
            assert [socket.sid for socket in sockets] == [sid]


class TestCountsAndRooms:
    def test_count_sockets(self, nodes: list[PaperNode]) -> None:
        for n, node in enumerate(nodes):
            for k in range(n + 1):
                sid = node.connects(f"e{k}")
                node.server.enter_room(sid, "even" if k % 2 == 0 else "odd")
        for node in nodes:
            count = node.manager.count_sockets()
            assert count == 6
            complete(count, 3)
            assert node.manager.count_sockets(room="even") == 4
            assert node.manager.count_sockets(except_rooms="even") == 2
            assert node.manager.count_sockets(namespace="/other") == 0

    def test_list_rooms(self, nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(queries, "PIECE_ROOMS", 2)
        for n, node in enumerate(nodes):
            sid = node.connects("e")
            for room in ["all", f"room {n}", ("pair", n), 7]:
                node.server.enter_room(sid, room)
        rooms = nodes[0].manager.list_rooms()
        complete(rooms, 3)
        own: dict[Any, int] = {f"room {n}": 1 for n in range(3)}
        own |= {("pair", n): 1 for n in range(3)}
        assert rooms == {"all": 3, 7: 3, **own}
        assert nodes[0].manager.list_rooms(room="room 2") == {"all": 1, "room 2": 1, ("pair", 2): 1, 7: 1}
        assert nodes[0].manager.list_rooms(namespace="/other") == {}


class TestCommands:
    def test_join_and_leave(self, nodes: list[PaperNode]) -> None:
        sids = [node.connects("e") for node in nodes]
        asking = nodes[0].manager
        joined = asking.sockets_join(["a", "b"], timeout=5)
        assert joined == 3
        complete(joined, 3)
        assert asking.count_sockets(room="b") == 3
        assert asking.sockets_leave("a", except_rooms=sids[1], timeout=5) == 2
        assert asking.list_rooms() == {"a": 1, "b": 3}
        assert asking.sockets_join("c", room=sids[2]) is None
        assert asking.sockets_join("d", room=sids[2], timeout=5) == 1
        assert set(nodes[2].server.rooms(sids[2])) == {sids[2], "b", "c", "d"}
        assert asking.sockets_leave(["c", "d"], room=[], timeout=5) == 0

    def test_what_one_node_commands_is_done_in_order(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        for n in range(20):
            other.connects(f"e{n}")
        asking.manager.sockets_join("room")
        asking.server.emit("event", 1, room="room")
        asking.manager.sockets_leave("room")
        asking.server.emit("event", 2, room="room")
        asking.server.emit("event", 3)
        other.gets('"event",3')
        got = [packet for _, packet in other.sent]
        assert got == ['2["event",1]'] * 20 + ['2["event",3]'] * 20

    def test_a_clients_own_room_is_entered_by_nobody(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        sid, elsewhere = asking.connects("a"), other.connects("b")
        with pytest.raises(ValueError, match="sid"):
            asking.manager.sockets_join(sid)
        assert asking.manager.count_sockets(room=elsewhere) == 1
        assert other.server.rooms(elsewhere) == [elsewhere]

    def test_no_namespace_is_the_main_one(self, nodes: list[PaperNode]) -> None:
        sids = [node.connects("e") for node in nodes]
        manager: Any = nodes[0].manager
        assert manager.sockets_join("x", namespace=None, timeout=5) == 3
        got: list[str] = []
        nodes[1].manager.on("event", lambda: got.append("event"))
        manager.server_side_emit("event", namespace=None)
        eventually(lambda: got)
        assert manager.sockets_leave("x", room=sids[0], namespace=None, timeout=5) == 1
        for ask in (manager.fetch_sockets, manager.count_sockets, manager.list_rooms, manager.call):
            with pytest.raises(TypeError, match="namespace"):
                ask("event", namespace=3)
        with pytest.raises(TypeError, match="name"):
            manager.server_side_emit(7)

    @pytest.mark.parametrize("rooms", [None, [None], ["a", None]])
    def test_nobody_enters_or_leaves_the_room_of_everybody(self, alone: PaperNode, rooms: Any) -> None:
        for command in (alone.manager.sockets_join, alone.manager.sockets_leave):
            with pytest.raises(ValueError, match="None"):
                command(rooms)

    def test_nobody_leaves_the_room_that_is_its_sid(self, nodes: list[PaperNode]) -> None:
        sids = [node.connects("e") for node in nodes]
        nodes[0].manager.sockets_leave(sids, timeout=5)
        assert nodes[0].manager.count_sockets(room=sids) == 3

    def test_disconnect(self, nodes: list[PaperNode]) -> None:
        sids = [node.connects(f"e{n}") for n, node in enumerate(nodes)]
        gone: list[str] = []
        for node in nodes:
            node.server.on("disconnect", lambda sid, *_: gone.append(sid))
        assert nodes[0].manager.disconnect_sockets(except_rooms=sids[0], timeout=5) == 2
        eventually(lambda: set(gone) == {sids[1], sids[2]})
        nodes[1].manager.disconnect_sockets()
        eventually(lambda: set(gone) == set(sids))
        assert nodes[0].manager.count_sockets() == 0

    def test_close_ends_the_connections(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        closed: list[str] = []
        other.server.eio.disconnect = closed.append
        other.connects("e")
        asking.manager.disconnect_sockets(close=True)
        eventually(lambda: closed == ["e"])


class TestServerEvents:
    def test_emit_reaches_every_other_node_in_order(self, nodes: list[PaperNode]) -> None:
        got: list[tuple[int, Any]] = []
        for n, node in enumerate(nodes):
            node.manager.on("tick", lambda *args, n=n: got.append((n, args)))
        for number in range(50):
            nodes[0].manager.server_side_emit("tick", number, {"b": b"\x00"})
        eventually(lambda: len(got) == 100)
        for n in (1, 2):
            assert [args for who, args in got if who == n] == [(number, {"b": b"\x00"}) for number in range(50)]

    def test_call_returns_the_answer_of_each_node(self, nodes: list[PaperNode]) -> None:
        for n, node in enumerate(nodes):

            @node.manager.on("add")
            def add(a: int, b: int, n: int = n) -> list[int]:
                return [n, a + b]

        answers = nodes[2].manager.server_side_call("add", 1, 2)
        assert answers == {nodes[0].manager.uid: [0, 3], nodes[1].manager.uid: [1, 3]}
        complete(answers, 2)
        assert answers.errors == {}

    def test_slow_and_failing_handlers_delay_nobody(self, nodes: list[PaperNode], caplog: Any) -> None:
        asking, slow, failing = nodes
        released = Event()
        slow.manager.on("work", lambda: released.wait() and "slow")
        slow.manager.on("ping", lambda: "pong")
        failing.manager.on("work", lambda: 1 // 0)
        failing.manager.on("ping", lambda: "pong")
        working = gevent.spawn(asking.manager.server_side_call, "work", timeout=10)
        gevent.sleep(0)
        assert asking.manager.server_side_call("ping") == {slow.manager.uid: "pong", failing.manager.uid: "pong"}
        assert not working.dead
        released.set()
        answers = working.get(timeout=5)
        assert answers == {slow.manager.uid: "slow"}
        assert answers.missing_nodes == (failing.manager.uid,)
        assert answers.errors == {failing.manager.uid: "ZeroDivisionError: integer division or modulo by zero"}
        assert "Traceback" in caplog.text

    def test_a_handler_that_runs_out_of_time_or_is_killed_is_an_error_at_once(self, nodes: list[PaperNode]) -> None:
        asking, late, killed = nodes

        @late.manager.on("work")
        def waits() -> None:
            with gevent.Timeout(0.01):
                Event().wait()

        working: list[gevent.Greenlet[..., Any]] = []

        @killed.manager.on("work")
        def is_killed() -> None:
            working.append(gevent.getcurrent())
            Event().wait()

        calling = gevent.spawn(asking.manager.server_side_call, "work", timeout=30)
        eventually(lambda: working)
        working[0].kill()
        answers = calling.get(timeout=5)
        assert answers == {}
        assert answers.errors == {
            late.manager.uid: "Timeout: 0.01 seconds",
            killed.manager.uid: "the handler was killed",
        }

    def test_the_name_of_an_event_cannot_be_left_out(self, alone: PaperNode) -> None:
        on: Any = alone.manager.on

        def handler() -> None: ...

        with pytest.raises(TypeError, match="name"):
            on(handler)

    def test_without_a_handler_a_node_says_so_at_once(self, nodes: list[PaperNode]) -> None:
        asking, other, none = nodes
        other.manager.on("event", lambda: None)
        other.manager.on("event", lambda: "wrong", namespace="/other")
        with gevent.Timeout(5):
            answers = asking.manager.server_side_call("event", timeout=30)
        assert answers == {other.manager.uid: None}
        assert answers.missing_nodes == (none.manager.uid,)
        assert "no handler" in answers.errors[none.manager.uid]

    def test_an_answer_that_cannot_be_sent_is_an_error(self, nodes: list[PaperNode]) -> None:
        asking, other, third = nodes
        other.manager.on("event", lambda: {1, 2})
        third.manager.on("event", lambda: 1)
        answers = asking.manager.server_side_call("event")
        assert answers == {third.manager.uid: 1}
        assert "cannot be sent" in answers.errors[other.manager.uid]

    def test_only_a_function_can_handle_an_event(self, alone: PaperNode) -> None:
        nonsense: Any = 5
        with pytest.raises(TypeError, match="the handler of 'event' must be a function, not int"):
            alone.manager.on("event", nonsense)
        with pytest.raises(TypeError, match="must be a function"):
            alone.manager.on("event")(nonsense)

    def test_arguments_that_cannot_be_sent_raise(self, nodes: list[PaperNode]) -> None:
        with pytest.raises(PayloadError):
            nodes[0].manager.server_side_emit("event", {1, 2})
        with pytest.raises(PayloadError):
            nodes[0].manager.server_side_call("event", {1, 2})
        assert len(nodes[0].manager._requests) == 0


class TestCall:
    def test_collects_every_acknowledgement(self, nodes: list[PaperNode]) -> None:
        for n, node in enumerate(nodes):
            node.connects(f"e{n}")
        calling = gevent.spawn(nodes[0].manager.call, "ask", {"q": 1})
        nodes[0].answers("e0", "ask")
        nodes[1].answers("e1", "ask", "one")
        nodes[2].answers("e2", "ask", "a", {"b": 2})
        answers = calling.get(timeout=5)
        assert sorted(answers, key=str) == [("a", {"b": 2}), None, "one"]
        complete(answers, 3)

    def test_to_one_client(self, nodes: list[PaperNode]) -> None:
        sid = nodes[1].connects("e")
        nodes[1].connects("f")
        calling = gevent.spawn(nodes[0].manager.call, "ask", room=sid)
        nodes[1].answers("e", "ask", 1)
        assert calling.get(timeout=5) == [1]

    def test_to_nobody(self, nodes: list[PaperNode]) -> None:
        selections: list[dict[str, Any]] = [{"room": "nobody"}, {"room": []}, {"namespace": "/other"}]
        for selection in selections:
            answers = nodes[0].manager.call("ask", **selection)
            assert answers == []
            assert answers.is_complete

    def test_clients_that_vanish_are_not_waited_for(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        asking.connects("a")
        other.connects("b")
        sid = other.connects("c")
        calling = gevent.spawn(asking.manager.call, "ask", timeout=30)
        other.gets("ask")
        asking.leaves("a")
        other.answers("b", "ask", 1)
        other.leaves("c")
        answers = calling.get(timeout=5)
        assert answers == [1]
        complete(answers, 1)
        assert sid not in other.manager.callbacks
        for node in (asking, other):
            assert not node.manager._acknowledgements._asked_by_sid

    def test_clients_that_do_not_answer_are_counted(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        other.connects("b")
        other.connects("c")
        calling = gevent.spawn(asking.manager.call, "ask", timeout=0.3)
        other.answers("b", "ask", 1)
        answers = calling.get(timeout=5)
        assert answers == [1]
        assert (answers.expected, answers.received, answers.is_complete) == (2, 1, False)
        assert answers.missing_nodes == (other.manager.uid,)

    def test_a_node_that_dies_is_missing(self, nodes: list[PaperNode]) -> None:
        asking, dying, other = nodes
        dying.connects("a")
        other.connects("b")
        calling = gevent.spawn(asking.manager.call, "ask", timeout=30)
        other.answers("b", "ask", 1)
        dying.gets("ask")
        cut_off(dying)
        answers = calling.get(timeout=5)
        assert answers == [1]
        assert answers.missing_nodes == (dying.manager.uid,)

    def test_a_second_answer_of_a_client_does_not_count(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        other.connects("b")
        other.connects("c")
        calling = gevent.spawn(asking.manager.call, "ask", timeout=0.5)
        other.answers("b", "ask", 1)
        other.answers("b", "ask", 2)
        assert calling.get(timeout=5) == [1]


class TestCallbacks:
    def test_a_callback_is_called_once_for_each_client(self, nodes: list[PaperNode]) -> None:
        got: list[Any] = []
        for n, node in enumerate(nodes):
            node.server.enter_room(node.connects(f"e{n}"), "room")
        nodes[0].server.emit("ask", 1, room="room", callback=lambda *args: got.append(args))
        for n, node in enumerate(nodes):
            node.answers(f"e{n}", "ask", n)
        eventually(lambda: sorted(got) == [(0,), (1,), (2,)])
        assert len(nodes[0].manager._requests) == 0

    def test_a_callback_may_fail(self, nodes: list[PaperNode]) -> None:
        asking = nodes[0]
        asking.connects("e")
        asking.server.emit("ask", 1, callback=lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            asking.answers("e", "ask", 1)
        eventually(lambda: len(asking.manager._requests) == 0)

    def test_own_clients_that_never_answer_are_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mesh_module, "SWEEP_SECONDS", 0.05)
        node = PaperNode(GeventMeshManager([], callback_timeout=0.2))
        sid = node.connects("e")
        node.server.emit("ask", 1, callback=print)
        assert len(node.manager.callbacks[sid]) == 2
        eventually(lambda: len(node.manager.callbacks[sid]) == 1)
        assert len(node.manager._requests) == 0
        node.manager.stop(0)


class TestBadPeers:
    """What an authenticated node may send and must not matter."""

    def test_answers_that_nobody_asked_for(self, nodes: list[PaperNode]) -> None:
        asking, other, _ = nodes
        kinds = {
            MessageType.ANSWER: messages.answer_count("0" * 16, 1),
            MessageType.FETCH_SOCKETS_RESPONSE: {"requestId": "0" * 16, "sockets": []},
            MessageType.BROADCAST_ACK: messages.broadcast_ack("0" * 16, [1]),
            MessageType.BROADCAST_CLIENT_COUNT: messages.client_count("0" * 16, 1),
            MessageType.CLIENTS_GONE: messages.clients_gone("0" * 16, 1),
            MessageType.SERVER_SIDE_EMIT_RESPONSE: messages.server_side_answer("0" * 16, 1),
        }
        for kind, data in kinds.items():
            other.manager._node.publish(kind, "/", data)
        complete(asking.manager.count_sockets(), 3)

    def test_an_answer_of_another_kind(self, nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever kind of answer comes to whatever kind of question, the question ends."""
        asking, other, _ = nodes
        asked: list[str] = []
        for kind in (MessageType.COUNT_SOCKETS, MessageType.FETCH_SOCKETS, MessageType.LIST_ROOMS):
            monkeypatch.setitem(
                other.manager._node._handlers, kind, lambda _peer, message: asked.append(message.data["requestId"])
            )
        for ask in (asking.manager.count_sockets, asking.manager.fetch_sockets, asking.manager.list_rooms):
            answers: list[tuple[MessageType, Any]] = [
                (MessageType.ANSWER, lambda id: messages.answer_count(id, 1)),
                (MessageType.ANSWER, lambda id: messages.answer_rooms(id, [("a", 1)])),
                (MessageType.FETCH_SOCKETS_RESPONSE, lambda id: {"requestId": id, "sockets": []}),
                (MessageType.SERVER_SIDE_EMIT_RESPONSE, lambda id: messages.server_side_answer(id, 1)),
                (MessageType.BROADCAST_ACK, lambda id: messages.broadcast_ack(id, [1])),
            ]
            for kind, make in answers:
                asking_now = gevent.spawn(ask, timeout=0.3)
                request_id = eventually(lambda: asked and asked.pop())
                other.manager._node.publish(kind, "/", make(request_id))
                asking_now.get(timeout=5)
