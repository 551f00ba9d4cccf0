"""Room interest between nodes that are really linked: who gets an event, and who waits for what."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import nullcontext
from time import monotonic
from typing import Any

import gevent
import pytest

from gevent_mesh import GeventMeshManager, StartError
from gevent_mesh.cluster import queries
from gevent_mesh.errors import MessageError
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.interest import FOLLOW_SECONDS, LEASE_SECONDS
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from tests.paper import PaperNode, paper_mesh
from tests.support import eventually


@pytest.fixture
def nodes() -> Iterator[list[PaperNode]]:
    with paper_mesh(3, room_interest=True) as linked:
        yield linked


def spared(node: PaperNode) -> int:
    assert node.manager.mesh is not None
    return node.manager.mesh.counters.events_spared


def has_leases(node: PaperNode, room: str, count: int) -> None:
    """Wait until so many nodes are left out of events for a room."""

    def leaves_out() -> bool:
        before = spared(node)
        node.server.emit("probe", 1, to=room)
        return spared(node) - before == count

    eventually(leaves_out)


def test_an_event_goes_only_to_nodes_with_members(nodes: list[PaperNode]) -> None:
    one, two, three = nodes
    sid = two.connects("a")
    three.connects("b")
    two.server.enter_room(sid, "red")
    has_leases(one, "red", 1)
    has_leases(one, "nobody", 2)
    two.sent.clear()
    three.sent.clear()
    one.server.emit("news", 1, to="red")
    two.gets("news")
    assert not [packet for _, packet in three.sent]


def test_everybody_in_a_namespace_is_a_room_as_well(nodes: list[PaperNode]) -> None:
    one, two, three = nodes
    two.connects("a")
    eventually(lambda: (one.server.emit("probe", 1), spared(one))[1] > 0)
    three.connects("b")
    one.server.emit("news", 1)
    two.gets("news")
    three.gets("news")


def test_a_room_that_was_entered_gets_the_very_next_event(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    sid = two.connects("a")
    for number in range(30):
        has_leases(one, f"room {number}", 2)
        two.server.enter_room(sid, f"room {number}")
        one.server.emit(f"event {number}.", 1, to=f"room {number}")
        two.gets(f"event {number}.")


def test_a_room_that_nobody_is_in_any_more_costs_nothing_again(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    sid = two.connects("a")
    two.server.enter_room(sid, "red")
    has_leases(one, "red", 1)
    two.server.leave_room(sid, "red")
    has_leases(one, "red", 2)
    two.server.enter_room(sid, "red")
    has_leases(one, "red", 1)
    two.leaves("a")
    has_leases(one, "red", 2)


def test_a_client_that_another_node_has_put_into_a_room_gets_the_next_event_of_any_node(nodes: list[PaperNode]) -> None:
    one, two, three = nodes
    sid = two.connects("a")
    for number, enter in enumerate([one.server.enter_room, three.manager.sockets_join]):
        room = f"room {number}"
        for node in (one, three):
            has_leases(node, room, 2)
        if number:
            enter(room, room=sid, timeout=5)
        else:
            enter(sid, room)
        for node in (one, three):
            node.server.emit(f"from {node.manager.uid} {number}.", 1, to=room)
            two.gets(f"from {node.manager.uid} {number}.")


def test_a_command_that_is_not_waited_for_comes_before_what_its_node_publishes_next(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    sid = two.connects("a")
    for number in range(10):
        has_leases(one, f"room {number}", 2)
        one.manager.sockets_join(f"room {number}", room=sid)
        one.server.emit(f"event {number}.", 1, to=f"room {number}")
        two.gets(f"event {number}.")


def test_what_an_emitter_has_put_into_a_room_gets_what_its_relay_emits_behind_that(nodes: list[PaperNode]) -> None:
    emitter = GeventMeshManager(nodes[0].manager.config.discovery[0], write_only=True)
    try:
        assert emitter.wait_for_peers(1)
        relay = next(node for node in nodes if node.manager.uid == emitter.peers[0].uid)
        other = next(node for node in nodes if node is not relay)
        relay.manager.on("go", lambda room: relay.server.emit(f"news of {room}.", 1, to=room))
        sid = other.connects("a")
        for number in range(10):
            has_leases(relay, f"room {number}", 2)
            emitter.enter_room(sid, "/", f"room {number}")
            emitter.server_side_emit("go", f"room {number}")
            other.gets(f"news of room {number}.")
    finally:
        emitter.close(0)


def test_a_command_costs_no_lease_of_nodes_that_it_has_not_gone_to(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    own, sid = one.connects("a"), two.connects("b")
    has_leases(one, "red", 2)
    before = spared(one)
    one.manager.sockets_join("blue", room=own)
    one.server.emit("news", 1, to="red")
    assert spared(one) - before == 2
    one.server.enter_room(sid, "green")
    one.server.emit("news", 1, to="red")
    assert spared(one) - before == 3


def test_a_client_that_came_between_a_failed_and_a_good_start_is_reached_by_its_sid(nodes: list[PaperNode]) -> None:
    one, url = nodes[0], nodes[0].manager.config.discovery[0]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        manager = GeventMeshManager(url, ws_port=taken.getsockname()[1], room_interest=True)
        late = PaperNode(manager, joins=False)
        with pytest.raises(StartError):
            manager.start()
        late.server.manager_initialized = True
        sid = late.connects("a")
    try:
        manager.start()
        assert manager.wait_for_peers(3)
        has_leases(one, "nobody", 3)
        one.server.emit("news", 1, to=sid)
        late.gets("news")
    finally:
        manager.stop(0.2)


def test_rooms_of_unusual_kinds_get_their_events(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    sid = two.connects("a")
    # The last of them has its node get everything.
    for number, room in enumerate([7, ("a", 1), b"binary", 2**63, "x" * 2000]):
        has_leases(one, "nobody", 2)
        two.server.enter_room(sid, room)
        one.server.emit(f"event {number}.", 1, to=[room])
        two.gets(f"event {number}.")


def test_questions_and_clients_by_their_sids_are_reached_as_ever(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    sid = two.connects("a")
    has_leases(one, "nobody", 2)
    one.server.emit("to a sid", 1, to=sid)
    two.gets("to a sid")
    one.server.emit("to a sid and a room", 1, to=["nobody", sid])
    two.gets("to a sid and a room")
    assert [socket.sid for socket in one.manager.fetch_sockets(sid)] == [sid]


def silent(node: PaperNode) -> None:
    """A node that says no more that it knows of rooms."""
    node.manager._node._handlers[MessageType.INTEREST] = lambda _peer, _message: None


def test_a_node_that_does_not_answer_delays_who_enters_for_as_long_as_its_lease_at_most(
    nodes: list[PaperNode],
) -> None:
    one, two, _ = nodes
    sid = two.connects("a")
    has_leases(one, "red", 2)
    silent(one)
    began = monotonic()
    two.server.enter_room(sid, "red")
    assert monotonic() - began <= LEASE_SECONDS + 0.5
    one.server.emit("news", 1, to="red")
    two.gets("news")


def test_a_command_with_a_timeout_is_counted_whole_although_others_know_late_of_it(nodes: list[PaperNode]) -> None:
    one, two, three = nodes
    two.connects("a")
    three.connects("b")
    has_leases(one, "red", 2)
    silent(one)
    began = monotonic()
    count = two.manager.sockets_join("red", timeout=0.3)
    assert monotonic() - began <= LEASE_SECONDS + 0.8
    assert (count, count.missing_nodes) == (2, ())


def test_a_command_with_a_timeout_ends_when_that_and_a_lease_are_over(nodes: list[PaperNode]) -> None:
    one, two, three = nodes
    two.connects("a")
    has_leases(one, "red", 2)
    silent(one)
    three.manager._node._handlers[MessageType.SOCKETS_JOIN] = lambda _peer, _message: None
    began = monotonic()
    count = two.manager.sockets_join("red", timeout=0.1)
    assert LEASE_SECONDS < monotonic() - began <= LEASE_SECONDS + 0.6
    assert count.missing_nodes == (three.manager.uid,)


@pytest.mark.parametrize("timeout", [0, -1, True])
def test_a_timeout_that_makes_no_sense_is_refused(timeout: float, nodes: list[PaperNode]) -> None:
    with pytest.raises(ValueError, match="timeout"):
        nodes[0].manager.sockets_join("red", timeout=timeout)


def test_a_question_to_a_slow_node_lets_nobody_else_run(
    nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its link is cut, and logging may wait: who publishes would go on with peers that have changed meanwhile."""
    one = nodes[0]
    mesh, logged = one.manager.mesh, gevent.event.Event()
    assert mesh is not None

    def warn(*_args: object) -> None:
        gevent.sleep(0)
        logged.set()

    monkeypatch.setattr(mesh.outboxes._logger, "warning", warn)
    peer = next(iter(mesh.table))
    ran = gevent.spawn(lambda: None)
    mesh.outboxes._cut_slow(peer, mesh.outboxes._links[peer.uid])
    assert not ran.ready()
    assert logged.wait(5)


def test_too_many_commands_of_one_node_at_a_time_are_dropped(
    nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_ANSWERS", 2)
    one, two, _ = nodes
    two.connects("a")
    has_leases(two, "nobody", 2)
    has_leases(one, "red", 2)
    silent(one)
    assert one.manager.mesh is not None
    assert two.manager.mesh is not None
    sender = two.manager.mesh.table.get(one.manager.uid)
    assert sender is not None
    for number in range(3):
        data = messages.sockets_join(messages.options(), ["red"], f"{number:016x}")
        message = ClusterMessage(MessageType.SOCKETS_JOIN, sender.uid, "/", data)
        with pytest.raises(MessageError) if number == 2 else nullcontext():
            two.manager._node.on_message(sender, message)
    commands = two.manager._node._handlers[MessageType.SOCKETS_JOIN].__self__  # type: ignore[attr-defined]  # a method
    assert len(commands._answering) == 2
    eventually(lambda: not len(commands._answering))


def test_copies_that_nobody_has_use_of_are_dropped(nodes: list[PaperNode]) -> None:
    one = nodes[0]
    has_leases(one, "red", 2)
    interest = one.manager._interest
    assert interest is not None
    interest.sweep(monotonic() + FOLLOW_SECONDS / 2)
    assert len(interest._copies) == 2
    interest.sweep(monotonic() + FOLLOW_SECONDS)
    assert not interest._copies
    has_leases(one, "red", 2)


def test_a_second_client_is_let_in_no_sooner_than_the_first(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    first, second = two.connects("a"), two.connects("b")
    has_leases(one, "red", 2)
    silent(one)
    entering = [gevent.spawn(two.server.enter_room, sid, "red") for sid in (first, second)]
    gevent.joinall(entering, timeout=0.2)
    assert not any(greenlet.ready() for greenlet in entering)
    gevent.joinall(entering, timeout=LEASE_SECONDS + 1)
    assert all(greenlet.ready() for greenlet in entering)


def test_a_client_that_goes_while_it_is_let_in_is_not_connected(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    eventually(lambda: (one.server.emit("probe", 1), spared(one))[1] > 0)
    silent(one)
    connecting = gevent.spawn(two.connects, "a")
    eventually(lambda: two.manager.rooms.get("/", {}).get(None))
    heard: list[str] = []
    two.server.on("connect", lambda *_args: heard.append("connect"))
    two.server.on("disconnect", lambda *_args: heard.append("disconnect"))
    two.leaves("a")
    with pytest.raises(AssertionError):
        connecting.get(timeout=LEASE_SECONDS + 1)
    assert not two.manager.rooms.get("/", {}).get(None)
    assert not heard


def test_thousands_of_rooms_are_told_in_parts(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    sid = two.connects("a")
    for number in range(5000):
        two.manager.basic_enter_room(sid, "/", f"a room of some length {number}")
    has_leases(one, "nobody", 2)
    has_leases(one, "a room of some length 4999", 1)
    two.leaves("a")
    has_leases(one, "a room of some length 4999", 2)


@pytest.mark.parametrize("options", [[True, False, True], [False, True, True]])
def test_nodes_with_and_without_the_option_get_what_is_theirs(options: list[bool]) -> None:
    with paper_mesh(1, room_interest=options[0]) as (one,):
        url = one.manager.config.discovery[0]
        others = [PaperNode(one.manager.__class__(url, ws_port=0, room_interest=on)) for on in options[1:]]
        try:
            assert one.manager.wait_for_peers(2)
            assert all(other.manager.wait_for_peers(2) for other in others)
            sids = [other.connects("a") for other in others]
            for number in range(20):
                for other, sid in zip(others, sids, strict=True):
                    other.server.enter_room(sid, f"room {number}")
                one.server.emit(f"event {number}.", 1, to=f"room {number}")
                one.server.emit("probe", 1, to="nobody")
                for other in others:
                    other.gets(f"event {number}.")
            gevent.sleep(0)
            if options[0]:
                has_leases(one, "nobody", options[1:].count(True))
            else:
                assert spared(one) == 0
        finally:
            for other in others:
                other.manager.stop(0.2)


def test_a_node_that_has_many_rooms_answers_a_late_joiner(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    sid = two.connects("a")
    two.server.enter_room(sid, "red")
    late = PaperNode(one.manager.__class__(one.manager.config.discovery[0], ws_port=0, room_interest=True))
    try:
        assert late.manager.wait_for_peers(3)
        has_leases(late, "red", 2)
        late.server.emit("news", 1, to="red")
        two.gets("news")
    finally:
        late.manager.stop(0.2)


def test_idle_nodes_say_nothing(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    sid = two.connects("a")
    kinds: list[Any] = []
    for node in nodes:
        on_message = node.manager._node.on_message

        def note(peer: Any, message: Any, on_message: Any = on_message) -> None:
            kinds.append(message.type)
            on_message(peer, message)

        node.manager._node.on_message = note  # type: ignore[method-assign]  # a spy
    for number in range(20):
        two.server.enter_room(sid, f"room {number}")
    assert all(node.manager.flush(5) for node in nodes)
    assert not {MessageType.INTEREST, MessageType.INTEREST_WANTED, MessageType.INTEREST_KNOWN} & set(kinds)
    one.server.emit("news", 1, to="room 1")
    eventually(lambda: MessageType.INTEREST in kinds)
