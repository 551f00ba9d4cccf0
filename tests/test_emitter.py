"""Write-only managers against nodes in the same process, over real links."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
import socketio

from gevent_mesh import ConfigError, EmitterError, GeventMeshManager, PayloadError, PayloadTooLarge
from gevent_mesh.emitter import calls, courier
from gevent_mesh.emitter.calls import Calls
from gevent_mesh.emitter.uplink import Candidates, Uplink
from gevent_mesh.errors import HandshakeError
from gevent_mesh.net.dialer import dial
from gevent_mesh.net.link import Link
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.frames import Auth, Frame, Role, encode_frame
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from gevent_mesh.protocol.relay import MAX_EMITTERS, Receipt
from tests.net.nodes import HandMade
from tests.paper import PaperNode, paper_mesh
from tests.support import eventually

NOBODY = "ws://127.0.0.1:1"
"""Nobody listens there."""


@pytest.fixture
def nodes() -> Iterator[list[PaperNode]]:
    with paper_mesh(3) as made:
        yield made


@pytest.fixture
def make_emitter() -> Iterator[Any]:
    made: list[GeventMeshManager] = []

    def make(where: list[PaperNode] | str, **options: Any) -> GeventMeshManager:
        url = where if isinstance(where, str) else where[0].manager.config.discovery[0]
        made.append(GeventMeshManager(url, write_only=True, **options))
        return made[-1]

    yield make
    for emitter in made:
        emitter.close(0)


@pytest.fixture
def emitter(make_emitter: Any, nodes: list[PaperNode]) -> GeventMeshManager:
    made: GeventMeshManager = make_emitter(nodes)
    return made


def relay_of(emitter: GeventMeshManager, nodes: list[PaperNode]) -> PaperNode:
    (peer,) = emitter.peers
    return next(node for node in nodes if node.manager.uid == peer.uid)


def uplink_of(emitter: GeventMeshManager) -> Uplink:
    assert emitter._emitter is not None
    assert emitter._emitter._courier is not None
    return emitter._emitter._courier._uplink


def link_of(emitter: GeventMeshManager) -> Link:
    link = eventually(lambda: uplink_of(emitter).link)
    assert link is not None
    return link


def numbers(node: PaperNode) -> list[int]:
    """The arguments of the numbered events that a node's clients got."""
    return [int(str(packet).partition('["tick",')[2][:-1]) for _, packet in node.sent if '["tick",' in str(packet)]


# ---------------------------------------------------------------------- what it can do


class TestPublishing:
    def test_an_event_reaches_the_clients_of_all_nodes(
        self, nodes: list[PaperNode], emitter: GeventMeshManager
    ) -> None:
        for node in nodes:
            node.connects("eio")
        emitter.emit("news", {"id": 7})
        assert emitter.flush()
        for node in nodes:
            assert node.sent == [("eio", '2["news",{"id":7}]')]

    def test_rooms_exclusions_namespaces_and_binary(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        node = nodes[0]
        one, two = node.connects("one"), node.connects("two")
        node.server.on("event", print, namespace="/other")
        node.connects("three", namespace="/other")
        node.sent.clear()
        node.server.enter_room(one, "room")
        node.server.enter_room(two, "room")
        emitter.emit("a", 1, room="room", skip_sid=one)
        emitter.emit("b", 2, to=[one])
        emitter.emit("c", 3, namespace="/other")
        emitter.emit("d", b"\x00", room="room", skip_sid=[two])
        emitter.emit("e", (1, "two"), room=one)
        emitter.emit("f", None, room=[])
        assert emitter.flush()
        assert node.sent == [
            ("two", '2["a",1]'),
            ("one", '2["b",2]'),
            ("three", '2/other,["c",3]'),
            ("one", '51-["d",{"_placeholder":true,"num":0}]'),
            ("one", b"\x00"),
            ("one", '2["e",1,"two"]'),
        ]

    def test_rooms_of_remote_clients_and_disconnects(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        sids = [node.connects("eio") for node in nodes]
        emitter.enter_room(sids[0], "/", "room")
        emitter.sockets_join("hall", room=sids[1])
        assert emitter.flush()
        assert nodes[0].server.rooms(sids[0]) == [sids[0], "room"]
        assert nodes[1].server.rooms(sids[1]) == [sids[1], "hall"]
        emitter.leave_room(sids[0], "/", "room")
        emitter.close_room("hall")
        emitter.disconnect(sids[2], "/")
        assert emitter.flush()
        assert nodes[0].server.rooms(sids[0]) == [sids[0]]
        assert nodes[1].server.rooms(sids[1]) == [sids[1]]
        eventually(lambda: not nodes[2].manager.is_connected(sids[2], "/"))
        emitter.disconnect_sockets(room=sids[1])
        eventually(lambda: not nodes[1].manager.is_connected(sids[1], "/"))

    def test_server_side_events_reach_every_node(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        heard: list[tuple[int, Any]] = []
        for number, node in enumerate(nodes):
            node.manager.on("reload", lambda what, number=number: heard.append((number, what)))
        emitter.server_side_emit("reload", {"what": "prices"})
        eventually(lambda: sorted(heard) == [(number, {"what": "prices"}) for number in range(3)])

    def test_nodes_with_another_form_of_packets_understand(self, make_emitter: Any) -> None:
        with paper_mesh(1) as (plain,):
            packed = PaperNode(GeventMeshManager(plain.manager.config.discovery[0], ws_port=0), serializer="msgpack")
            try:
                assert packed.manager.wait_for_peers(1)
                plain.connects("eio")
                packed.server._handle_eio_connect("eio", {})
                packed.server._handle_eio_message("eio", packed.server.packet_class(0, namespace="/").encode())
                packed.sent.clear()
                emitter = make_emitter([plain])
                emitter.emit("news", {"raw": b"\x00"})
                assert emitter.flush()
                assert len(plain.sent) == 2
                ((_, packet),) = packed.sent
                assert packed.server.packet_class(encoded_packet=packet).data == ["news", {"raw": b"\x00"}]
            finally:
                packed.manager.stop(0)

    def test_order_is_kept_across_all_calls(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        sid = nodes[1].connects("eio")
        for number in range(50):
            room = f"room {number}"
            emitter.enter_room(sid, "/", room)
            emitter.emit("tick", number, room=room)
            emitter.leave_room(sid, "/", room)
            emitter.emit("tick", -1, room=room)
        assert emitter.flush()
        assert numbers(nodes[1]) == list(range(50))

    def test_what_cannot_be_sent_raises_and_changes_nothing(self, nodes: list[PaperNode], make_emitter: Any) -> None:
        emitter = make_emitter(nodes, buffered_amount_threshold=64 * 1024)
        nodes[0].connects("eio")
        with pytest.raises(PayloadTooLarge):
            emitter.emit("large", "x" * 70_000)
        with pytest.raises(TypeError):
            emitter.emit("object", object())
        with pytest.raises(PayloadError):
            emitter.server_side_emit("object", object())
        emitter.emit("tick", 1)
        assert emitter.flush()
        assert numbers(nodes[0]) == [1]

    def test_a_long_namespace_counts_as_often_as_it_is_sent(self, make_emitter: Any) -> None:
        with paper_mesh(1, buffered_amount_threshold=64 * 1024) as (node,):
            emitter = make_emitter([node], buffered_amount_threshold=64 * 1024)

            def is_taken(size: int) -> bool:
                try:
                    emitter.emit("large", "x" * size, namespace="/" + "n" * 300)
                except PayloadTooLarge:
                    return False
                return True

            assert next(size for size in range(64 * 1024, 0, -1) if is_taken(size)) > 64_000
            assert emitter.flush()

    def test_what_a_node_refuses_is_an_error_and_told_once(
        self, make_emitter: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with paper_mesh(1, buffered_amount_threshold=64 * 1024) as (node,):
            node.connects("eio")
            emitter = make_emitter([node])
            emitter.emit("tick", 1)
            emitter.emit("large", "x" * 70_000)
            emitter.emit("tick", 2)
            assert not emitter.flush()
            assert "1 message is lost" in caplog.text
            assert numbers(node) == [1, 2]
            assert emitter.flush()
            emitter.emit("large", "x" * 70_000)
            assert not emitter.close()


class TestCallbacks:
    def test_a_callback_is_called_once_for_each_client(
        self, nodes: list[PaperNode], emitter: GeventMeshManager
    ) -> None:
        for node in nodes:
            node.connects("eio")
        answers: list[Any] = []
        emitter.emit("question", 1, callback=lambda *values: answers.append(values))
        for number, node in enumerate(nodes):
            node.answers("eio", "question", "answer", number)
        eventually(lambda: sorted(answers) == [("answer", number) for number in range(3)])
        assert emitter._emitter is not None
        made = emitter._emitter._courier
        assert made is not None
        eventually(lambda: len(made.calls) == 0)

    def test_callbacks_of_a_greenlet_run_in_its_thread(
        self, nodes: list[PaperNode], emitter: GeventMeshManager
    ) -> None:
        nodes[0].connects("eio")
        threads: list[int] = []
        ask = gevent.spawn(emitter.emit, "question", 1, callback=lambda: threads.append(threading.get_ident()))
        ask.get()
        nodes[0].answers("eio", "question")
        eventually(lambda: threads == [threading.get_ident()])

    def test_callbacks_of_a_thread_run_in_a_thread_and_do_not_hold_up_the_network(
        self, nodes: list[PaperNode], emitter: GeventMeshManager
    ) -> None:
        nodes[0].connects("eio")
        threads: list[int] = []
        goes_on = threading.Event()

        def answered() -> None:
            threads.append(threading.get_ident())
            goes_on.wait(5)

        ask = threading.Thread(target=emitter.emit, args=("question", 1), kwargs={"callback": answered})
        ask.start()
        nodes[0].answers("eio", "question")
        eventually(lambda: threads)
        assert threads != [threading.get_ident()]
        emitter.emit("tick", 1)
        assert emitter.flush()
        goes_on.set()
        ask.join()

    def test_a_client_that_never_answers_costs_nothing_for_long(
        self, nodes: list[PaperNode], make_emitter: Any
    ) -> None:
        emitter = make_emitter(nodes, callback_timeout=0.2)
        nodes[0].connects("eio")
        emitter.emit("question", 1, callback=print)
        made = emitter._emitter._courier
        eventually(lambda: len(made.calls) == 0)

    def test_an_event_that_is_not_published_leaves_no_callback(self, nodes: list[PaperNode], make_emitter: Any) -> None:
        emitter = make_emitter(nodes, buffered_amount_threshold=64 * 1024)
        with pytest.raises(PayloadTooLarge):
            emitter.emit("large", "x" * 70_000, callback=print)
        assert len(emitter._emitter._courier.calls) == 0

    def test_a_callback_that_fails_is_logged(
        self, nodes: list[PaperNode], emitter: GeventMeshManager, caplog: pytest.LogCaptureFixture
    ) -> None:
        nodes[0].connects("eio")
        emitter.emit("question", 1, callback=lambda: 1 / 0)
        nodes[0].answers("eio", "question")
        eventually(lambda: "ZeroDivisionError" in caplog.text)

    def test_an_answer_that_is_told_again_counts_once(self) -> None:
        heard: list[int] = []
        open_calls = Calls(60.0)
        request = open_calls.open(heard.append, 0.0)
        for number in (1, 2, 1, 2, 3):
            open_calls.answered(request, number, [number])
        eventually(lambda: sorted(heard) == [1, 2, 3])

    def test_what_is_kept_is_bounded(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr(calls, "MAX_OPEN", 3)
        monkeypatch.setattr(calls, "MAX_WAITING", 3)
        open_calls = Calls(60.0)
        goes_on, is_running = threading.Event(), threading.Event()

        def slow(_number: int) -> None:
            is_running.set()
            goes_on.wait(5)

        requests = [open_calls.open(slow, 0.0) for _ in range(5)]
        assert len(open_calls) == 3
        open_calls.answered(requests[-1], 1, [1])
        eventually(is_running.is_set)
        for number in range(2, 7):
            open_calls.answered(requests[-1], number, [number])
        assert caplog.text.count("callbacks are slower") == 2
        goes_on.set()


# ---------------------------------------------------------------------- its node


class TestItsNode:
    def test_it_is_linked_to_one_node(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        assert emitter.wait_for_peers(3)
        (peer,) = emitter.peers
        assert peer.state == "alive"
        seen_by = [node for node in nodes if any(info.uid == emitter.uid for info in node.manager.peers)]
        assert [node.manager.uid for node in seen_by] == [peer.uid]

    def test_it_is_no_peer_that_events_are_for(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        assert emitter.wait_for_peers(1)
        relay = relay_of(emitter, nodes)
        mesh = relay.manager.mesh
        assert mesh is not None
        peer = mesh.table.get(emitter.uid)
        assert peer is not None
        relay.server.emit("event", 1)
        relay.manager.server_side_emit("event")
        assert relay.manager.flush(5)
        assert peer.session.next_sequence == 1
        assert peer.is_emitter
        assert relay.manager.count_sockets().is_complete

    def test_it_takes_another_node_when_its_own_stops(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        assert emitter.wait_for_peers(1)
        relay = relay_of(emitter, nodes)
        others = [node for node in nodes if node is not relay]
        for node in others:
            node.connects("eio")
        emitter.emit("tick", 1)
        relay.manager.stop()
        emitter.emit("tick", 2)
        assert emitter.flush()
        assert [numbers(node) for node in others] == [[1, 2], [1, 2]]
        assert relay_of(emitter, nodes) in others

    def test_what_is_not_known_to_be_everywhere_is_sent_again_and_arrives_once(
        self, nodes: list[PaperNode], emitter: GeventMeshManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for node in nodes:
            node.connects("eio")
        with monkeypatch.context() as patched:
            patched.setattr(Receipt, "settle", lambda *_: None)
            for number in range(100):
                emitter.emit("tick", number)
            for _ in range(3):
                eventually(lambda: all(len(numbers(node)) == 100 for node in nodes))
                link = link_of(emitter)
                link.transport.abort()
                eventually(lambda link=link: uplink_of(emitter).link not in (None, link))  # type: ignore[misc]  # bound now
                emitter.emit("last", 1)
                eventually(lambda: all("last" in str(node.sent[-1]) for node in nodes))
            assert not emitter.flush(0.1)
        assert emitter.flush()
        for node in nodes:
            assert numbers(node) == list(range(100))
            assert len(node.sent) == 103

    def test_a_link_that_breaks_is_made_again_to_the_same_node(
        self, nodes: list[PaperNode], emitter: GeventMeshManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gevent_mesh.emitter.uplink.HEALTHY_SECONDS", 0.0)
        assert emitter.wait_for_peers(1)
        relay = relay_of(emitter, nodes)
        for _ in range(5):
            link = link_of(emitter)
            link.transport.abort()
            eventually(lambda link=link: uplink_of(emitter).link not in (None, link))  # type: ignore[misc]  # bound now
            assert relay_of(emitter, nodes) is relay

    def test_its_boot_key_is_shown_to_a_node_once_and_nobody_takes_that_nodes_place(
        self,
        nodes: list[PaperNode],
        emitter: GeventMeshManager,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        shown: list[int] = []

        def encode(frame: Frame) -> bytes:
            if isinstance(frame, Auth):
                shown.append(len(frame.boot))
            return encode_frame(frame)

        monkeypatch.setattr("gevent_mesh.emitter.uplink.HEALTHY_SECONDS", 0.0)
        monkeypatch.setattr("gevent_mesh.protocol.link.encode_frame", encode)
        assert emitter.wait_for_peers(1)
        relay, link = relay_of(emitter, nodes), link_of(emitter)
        link.transport.abort()
        eventually(lambda: uplink_of(emitter).link not in (None, link))
        assert relay_of(emitter, nodes) is relay
        assert shown == [16, 32]
        assert relay.manager._node.mesh is not None
        relay.manager._node.mesh._secret = b"another process."
        link_of(emitter).transport.abort()
        eventually(lambda: f"no link to {relay.manager.uid}" in caplog.text and "another process" in caplog.text)

    def test_an_error_of_its_own_does_not_end_it(
        self, nodes: list[PaperNode], emitter: GeventMeshManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dials = []

        def fails_at_first(*arguments: Any, **options: Any) -> Any:
            dials.append(1)
            if len(dials) <= 2:
                raise RuntimeError("can't start new thread")
            return dial(*arguments, **options)

        monkeypatch.setattr("gevent_mesh.emitter.uplink.dial", fails_at_first)
        emitter.emit("tick", 1)
        assert emitter.flush()
        assert len(dials) == 3
        assert len(nodes) == 3

    def test_a_node_that_leaves_the_mesh_forgets_what_it_owed_to_emitters(
        self, nodes: list[PaperNode], emitter: GeventMeshManager
    ) -> None:
        assert emitter.wait_for_peers(1)
        relay = relay_of(emitter, nodes).manager
        assert relay._relay._receipts
        relay.stop(0)
        assert not relay._relay._receipts

    def test_nodes_of_another_channel_do_not_take_it(
        self, nodes: list[PaperNode], make_emitter: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        emitter = make_emitter(nodes, channel="another")
        emitter.emit("tick", 1)
        eventually(lambda: "channel" in caplog.text)
        assert not emitter.flush(0.1)
        assert emitter.peers == []

    def test_a_node_without_company_is_enough(self, make_emitter: Any) -> None:
        with paper_mesh(1) as (node,):
            node.connects("eio")
            emitter = make_emitter([node])
            emitter.emit("tick", 1)
            assert emitter.flush()
            assert numbers(node) == [1]


class TestCandidates:
    @pytest.fixture
    def candidates(self) -> Candidates:
        import random

        made = Candidates(random.Random(1))
        made.roster("d", {"a" * 16: "ws://a:1", "b" * 16: "ws://b:1", "node": "ws://c:1", "c" * 16: ""}, True)
        return made

    def test_any_node_that_can_be_dialled_may_be_tried(self, candidates: Candidates) -> None:
        assert {candidates.next(0.0) for _ in range(50)} == {("a" * 16, "ws://a:1"), ("b" * 16, "ws://b:1")}

    def test_the_last_one_is_tried_first(self, candidates: Candidates) -> None:
        candidates.linked("b" * 16)
        assert {candidates.next(0.0) for _ in range(50)} == {("b" * 16, "ws://b:1")}

    def test_one_that_failed_waits_behind_the_others(self, candidates: Candidates) -> None:
        candidates.linked("b" * 16)
        candidates.failed("b" * 16, 0.0)
        assert {candidates.next(100.0) for _ in range(50)} == {("a" * 16, "ws://a:1")}

    def test_when_all_have_failed_they_are_tried_after_a_while(self, candidates: Candidates) -> None:
        for _ in range(6):
            candidates.failed("a" * 16, 0.0)
            candidates.failed("b" * 16, 0.0)
        due = candidates.next_due()
        assert due is not None
        assert 0.0 < due <= 15.0
        assert candidates.next(due - 0.001) is None
        assert candidates.next(due) is not None

    def test_a_roster_that_may_be_short_takes_nobody_away(self, candidates: Candidates) -> None:
        candidates.roster("d", {}, False)
        assert candidates.next(0.0) is not None
        candidates.roster("d", {}, False, ("a" * 16,))
        assert {candidates.next(0.0) for _ in range(50)} == {("b" * 16, "ws://b:1")}
        candidates.roster("d", {}, True)
        assert candidates.next(0.0) is None
        assert candidates.next_due() is None


# ---------------------------------------------------------------------- its life


class TestLife:
    def test_nothing_happens_before_the_first_use(self, make_emitter: Any) -> None:
        emitter = make_emitter(NOBODY)
        assert emitter.peers == []
        assert emitter.flush()
        assert emitter.close()
        assert emitter._emitter._courier is None

    def test_nothing_is_taken_after_close(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        nodes[0].connects("eio")
        emitter.emit("tick", 1)
        assert emitter.close()
        assert numbers(nodes[0]) == [1]
        with pytest.raises(EmitterError, match="closed"):
            emitter.emit("tick", 2)
        assert emitter.peers == []
        assert emitter.close()

    def test_start_opens_it_again_under_another_uid(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        nodes[0].connects("eio")
        emitter.emit("tick", 1)
        first = emitter.uid
        assert emitter.close()
        emitter.start()
        emitter.emit("tick", 2)
        assert emitter.flush()
        assert emitter.uid != first
        assert numbers(nodes[0]) == [1, 2]

    def test_a_node_forgets_one_that_closes(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        assert emitter.wait_for_peers(1)
        relay = relay_of(emitter, nodes)
        assert emitter.close()
        eventually(lambda: emitter.uid not in [info.uid for info in relay.manager.peers])

    def test_what_waits_is_bounded_and_the_error_says_why(
        self, make_emitter: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(courier, "FULL_SECONDS", 0.2)
        emitter = make_emitter(NOBODY, buffered_amount_threshold=64 * 1024)
        for _ in range(6):
            emitter.emit("event", "x" * 10_000)
        turns = 0

        def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                gevent.sleep(0.01)

        with gevent.Greenlet.spawn(count) as counting:
            began = time.monotonic()
            with pytest.raises(EmitterError, match=r"6 messages wait.*127\.0\.0\.1:1.*nobody gets this one"):
                emitter.emit("event", "x" * 10_000)
            assert 0.2 <= time.monotonic() - began < 2
            counting.kill()
        assert turns > 3

    def test_it_waits_for_room_instead_of_raising(self, nodes: list[PaperNode], make_emitter: Any) -> None:
        emitter = make_emitter(nodes, buffered_amount_threshold=64 * 1024)
        nodes[2].connects("eio")
        for number in range(300):
            emitter.emit("tick", number)
            emitter.emit("fill", "x" * 10_000, room="nobody")
        assert emitter.flush()
        assert numbers(nodes[2]) == list(range(300))

    def test_nobody_waits_in_an_event_loop_itself(self, make_emitter: Any) -> None:
        emitter = make_emitter(NOBODY, buffered_amount_threshold=64 * 1024)
        for _ in range(6):
            emitter.emit("event", "x" * 10_000)
        seen: list[Any] = []

        def emit() -> None:
            try:
                emitter.emit("event", "x" * 10_000)
            except EmitterError as error:
                seen.append(error)
            seen.append(emitter.flush(10))

        began = time.monotonic()
        gevent.get_hub().loop.run_callback(emit)
        eventually(lambda: len(seen) == 2)
        assert time.monotonic() - began < 1
        assert seen[1] is False

    def test_what_is_lost_at_close_is_told(self, make_emitter: Any, caplog: pytest.LogCaptureFixture) -> None:
        emitter = make_emitter(NOBODY)
        emitter.emit("event", 1)
        emitter.emit("event", 2)
        assert not emitter.close(0.1)
        assert "2 messages may be lost" in caplog.text
        assert "127.0.0.1:1" in caplog.text

    def test_many_threads_publish_at_once(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        nodes[0].connects("eio")

        def publish(first: int) -> None:
            for number in range(first, first + 200):
                emitter.emit("tick", number)

        threads = [threading.Thread(target=publish, args=(1000 * number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: not any(thread.is_alive() for thread in threads))
        assert emitter.flush()
        got = numbers(nodes[0])
        for number in range(8):
            mine = [one for one in got if one // 1000 == number]
            assert mine == list(range(1000 * number, 1000 * number + 200))

    def test_a_server_cannot_have_it(self, emitter: GeventMeshManager) -> None:
        with pytest.raises(ConfigError, match="without a server"):
            socketio.Server(async_mode="gevent", client_manager=emitter).manager_initialized = True


# ---------------------------------------------------------------------- what it may not do


def stranger(node: PaperNode, **options: Any) -> HandMade:
    """An emitter that is driven by hand."""
    target: Any = SimpleNamespace(address=node.manager.address, uid=node.manager.uid)
    return HandMade(target, **{"uid": "00000000000000ee", "role": Role.EMITTER, **options})


def sends(made: HandMade, kind: MessageType, data: dict[str, Any]) -> None:
    uid = made.protocol._us.uid
    made.session.append(messages.encode(kind, uid, "/", data))
    made.flush()


def publishes(made: HandMade, number: int, uid: str = "", event: str = "tick") -> None:
    packet = messages.broadcast(messages.options(), packet=[event, number])
    inner = messages.encode(MessageType.BROADCAST, uid or made.protocol._us.uid, "/", packet)
    sends(made, MessageType.PUBLISH, messages.publish(number, inner))


def is_told(made: HandMade, upto: int) -> None:
    """Wait until it is told that everything up to this number is everywhere."""

    def told() -> list[int]:
        return [
            event.data["upto"]
            for event in made.events
            if isinstance(event, ClusterMessage) and event.type is MessageType.RELAYED
        ]

    with gevent.Timeout(5):
        while upto not in told():
            assert made.step()


def spoofed(node: PaperNode) -> int:
    assert node.manager.mesh is not None
    return node.manager.mesh.counters.spoofed


class TestWhatItMayNotDo:
    def test_it_cannot_take_the_place_of_a_node(self, nodes: list[PaperNode]) -> None:
        one, two = nodes[:2]
        mesh = one.manager.mesh
        assert mesh is not None
        peer = mesh.table.get(two.manager.uid)
        assert peer is not None
        link = peer.link
        made = stranger(one, uid=two.manager.uid)
        with pytest.raises(HandshakeError, match="place of a node"):
            made.handshake()
        assert mesh.table.get(two.manager.uid) is peer
        assert peer.link is link
        assert not peer.is_emitter
        two.connects("eio")
        one.server.emit("tick", 1)
        eventually(lambda: numbers(two) == [1])

    def test_it_cannot_take_the_place_of_a_node_whose_link_is_down(self, nodes: list[PaperNode]) -> None:
        one, two = nodes[:2]
        mesh = one.manager.mesh
        assert mesh is not None
        peer = mesh.table.get(two.manager.uid)
        assert peer is not None
        mesh._links[two.manager.uid].cut("by the test")
        with pytest.raises(HandshakeError, match=r"place of a node|other side|linked"):
            stranger(one, uid=two.manager.uid).handshake()
        assert not peer.is_emitter
        eventually(lambda: peer.link is not None)

    @pytest.mark.parametrize(
        ("kind", "data"),
        [
            (MessageType.BROADCAST, messages.broadcast(messages.options(), packet=["tick", 1])),
            (MessageType.DISCONNECT_SOCKETS, messages.disconnect_sockets(messages.options())),
            (MessageType.HEARTBEAT, {}),
            (MessageType.ADAPTER_CLOSE, {}),
            (MessageType.BROADCAST_ACK, messages.broadcast_ack("ab", [1])),
            (MessageType.FETCH_SOCKETS, messages.fetch_sockets(messages.options(), "ab")),
            (MessageType.SERVER_SIDE_EMIT, messages.server_side_emit(["tick", 1])),
            (MessageType.RELAYED, messages.relayed(1)),
        ],
    )
    def test_it_can_only_publish(self, nodes: list[PaperNode], kind: MessageType, data: dict[str, Any]) -> None:
        nodes[0].connects("eio")
        made = stranger(nodes[0]).handshake()
        sends(made, kind, data)
        publishes(made, 1, event="then")
        is_told(made, 1)
        assert spoofed(nodes[0]) == 1
        assert nodes[0].sent == [("eio", '2["then",1]')]

    def test_it_cannot_relay(self, nodes: list[PaperNode]) -> None:
        nodes[0].connects("eio")
        made = stranger(nodes[0]).handshake()
        packet = messages.broadcast(messages.options(), packet=["tick", 1])
        inner = messages.encode(MessageType.BROADCAST, "f" * 16, "/", packet)
        sends(made, MessageType.RELAY, messages.relay("f" * 16, 1, inner))
        publishes(made, 1, event="then")
        is_told(made, 1)
        assert spoofed(nodes[0]) == 1
        assert nodes[0].sent == [("eio", '2["then",1]')]

    def test_it_cannot_speak_in_the_name_of_another(self, nodes: list[PaperNode]) -> None:
        for node in nodes:
            node.connects("eio")
        made = stranger(nodes[0]).handshake()
        publishes(made, 1, uid=nodes[1].manager.uid)
        publishes(made, 2, uid="f" * 16)
        publishes(made, 3)
        is_told(made, 3)
        assert [numbers(node) for node in nodes] == [[3], [3], [3]]
        assert spoofed(nodes[0]) == 2

    def test_what_is_malformed_costs_itself_only(self, nodes: list[PaperNode]) -> None:
        nodes[1].connects("eio")
        made = stranger(nodes[0]).handshake()
        sends(made, MessageType.PUBLISH, messages.publish(1, b"\xc1"))
        sends(made, MessageType.PUBLISH, messages.publish(2, b""))
        sends(made, MessageType.PUBLISH, {"n": "one"})
        is_told(made, 2)
        publishes(made, 3)
        is_told(made, 3)
        assert numbers(nodes[1]) == [3]

    def test_a_heartbeat_of_it_says_nothing(self, nodes: list[PaperNode], emitter: GeventMeshManager) -> None:
        assert emitter.wait_for_peers(1)
        mesh = relay_of(emitter, nodes).manager.mesh
        assert mesh is not None
        peer = mesh.table.get(emitter.uid)
        assert peer is not None
        uplink_of(emitter).status = lambda: {"clients": 5, "namespaces": ["/"]}  # type: ignore[method-assign]  # a lie
        eventually(lambda: peer.link is not None and peer.link.heard_at > peer.linked_at)
        assert (peer.clients, peer.namespaces) == (None, frozenset())

    def test_it_does_not_keep_a_node_out(self, nodes: list[PaperNode]) -> None:
        uid = "00000000000000ef"
        stranger(nodes[0], uid=uid).handshake()
        node = stranger(nodes[0], uid=uid, role=Role.NODE).handshake()
        mesh = nodes[0].manager.mesh
        assert mesh is not None
        peer = mesh.table.get(uid)
        assert peer is not None
        assert not peer.is_emitter
        publishes(node, 1)
        eventually(lambda: spoofed(nodes[0]) == 1)


class TestWhatRelaysMayNotDo:
    def relays(self, made: HandMade, emitter: str, number: int, uid: str = "") -> None:
        packet = messages.broadcast(messages.options(), packet=["tick", number])
        inner = messages.encode(MessageType.BROADCAST, uid or emitter, "/", packet)
        sends(made, MessageType.RELAY, messages.relay(emitter, number, inner))

    def test_what_comes_by_several_ways_is_delivered_once(self, nodes: list[PaperNode]) -> None:
        nodes[0].connects("eio")
        one = stranger(nodes[0], role=Role.NODE, uid="00000000000000a1").handshake()
        two = stranger(nodes[0], role=Role.NODE, uid="00000000000000a2").handshake()
        for number in (1, 2, 3):
            self.relays(one, "e" * 16, number)
        eventually(lambda: len(numbers(nodes[0])) == 3)
        for number in (2, 3, 4):
            self.relays(two, "e" * 16, number)
        eventually(lambda: len(numbers(nodes[0])) == 4)
        assert numbers(nodes[0]) == [1, 2, 3, 4]

    def test_long_work_on_one_message_is_not_overtaken_by_the_next(
        self, nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nodes[0].connects("eio")
        node = nodes[0].manager._node
        hand_on = node.hand_on

        def slowly(peer: Any, message: ClusterMessage) -> None:
            if message.type is MessageType.BROADCAST:
                # As the first of many clients are moved from room to room: others run meanwhile.
                gevent.sleep(0.01 if message.data["packet"]["data"][1] % 3 else 0.05)
            hand_on(peer, message)

        monkeypatch.setattr(node, "hand_on", slowly)
        one = stranger(nodes[0], role=Role.NODE, uid="00000000000000a1").handshake()
        two = stranger(nodes[0], role=Role.NODE, uid="00000000000000a2").handshake()
        for number in range(3, 20):
            self.relays(one, "e" * 16, number)
            self.relays(two, "e" * 16, number)
        eventually(lambda: len(numbers(nodes[0])) >= 17)
        assert numbers(nodes[0]) == list(range(3, 20))

    def test_what_was_put_off_is_done_before_a_failure_is_logged(
        self, nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manager, done = nodes[0].manager, list[str]()
        hand_on = manager._node.hand_on

        def fail(peer: Any, message: ClusterMessage) -> None:
            if message.type is MessageType.BROADCAST:
                done.append("failed")
                raise RuntimeError("on purpose")
            hand_on(peer, message)

        monkeypatch.setattr(manager._node, "hand_on", fail)
        monkeypatch.setattr(manager._node, "settle", lambda: done.append("settled"))
        monkeypatch.setattr(manager._relay._logger, "exception", lambda *_: done.append("logged"))
        made = stranger(nodes[0], role=Role.NODE, uid="00000000000000a1").handshake()
        self.relays(made, "e" * 16, 1)
        eventually(lambda: "logged" in done)
        assert done[done.index("failed") :][:3] == ["failed", "settled", "logged"]

    def test_relaying_in_the_name_of_a_node_is_refused(self, nodes: list[PaperNode]) -> None:
        nodes[0].connects("eio")
        made = stranger(nodes[0], role=Role.NODE, uid="00000000000000a1").handshake()
        self.relays(made, nodes[0].manager.uid, 1)
        self.relays(made, nodes[1].manager.uid, 2)
        self.relays(made, "00000000000000a1", 3)
        self.relays(made, "e" * 16, 4, uid="f" * 16)
        self.relays(made, "e" * 16, 5)
        eventually(lambda: numbers(nodes[0]) == [5])
        assert spoofed(nodes[0]) == 4

    def test_what_is_relayed_is_acknowledged_at_once(self, nodes: list[PaperNode]) -> None:
        made = stranger(nodes[0], role=Role.NODE, uid="00000000000000a1").handshake()
        self.relays(made, "e" * 16, 1)
        began = time.monotonic()
        while made.session.has_outbox:
            assert made.step()
        assert time.monotonic() - began < 0.15

    def test_emitters_are_forgotten_in_the_end(self, nodes: list[PaperNode]) -> None:
        made = stranger(nodes[0], role=Role.NODE, uid="00000000000000a1").handshake()
        for number in range(50):
            self.relays(made, f"{number:016x}", 1)
        relay = nodes[0].manager._relay
        eventually(lambda: len(relay._delivered) == 50)
        assert MAX_EMITTERS >= 50
        relay.sweep(time.monotonic() + 4000)
        assert len(relay._delivered) == 0


def test_a_wrong_token_is_told(make_emitter: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    from gevent_mesh_discovery import DiscoveryServer

    discovery = DiscoveryServer(port=0, tokens=("a token that is long enough",))
    discovery.start()
    try:
        emitter = make_emitter(discovery.url, auth_token="another one that is long")
        emitter.emit("event", 1)
        eventually(lambda: "token" in caplog.text)
        assert not emitter.close(0.1)
        assert "does not accept our token" in caplog.text
    finally:
        discovery.stop()
