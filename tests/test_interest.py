"""Room interest between nodes that are really linked: who gets an event, and who waits for what."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest

from gevent_mesh.protocol.interest import LEASE_SECONDS
from gevent_mesh.protocol.messages import MessageType
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


def test_rooms_of_unusual_kinds_get_their_events(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    sid = two.connects("a")
    for number, room in enumerate([7, ("a", 1), b"binary", "x" * 2000, 2**63]):
        one.server.emit("probe", 1, to=[room])
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
    two.leaves("a")
    with pytest.raises(AssertionError):
        connecting.get(timeout=LEASE_SECONDS + 1)
    assert not two.manager.rooms.get("/", {}).get(None)


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
