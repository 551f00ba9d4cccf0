"""Routing: who gets what, and in which form."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Sequence

import gevent
import pytest

from gevent_mesh.node import Node
from gevent_mesh.protocol.membership import Backoff, Member, PeerState
from gevent_mesh.protocol.messages import ClusterMessage
from gevent_mesh.protocol.peers import Peer, PeerTable
from gevent_mesh.protocol.session import Session
from gevent_mesh.routing import event_receivers, of_node, owner_of, owners, receivers
from tests.paper import PaperNode, paper_mesh
from tests.support import eventually


def peer(uid: str, *, codec: str = "json", receives_events: bool = True) -> Peer:
    """A peer that has been linked."""
    member = Member(uid, "ws://a:1", PeerState.ALIVE, 0.0)
    found = Peer(uid, member, Session(bytes(8), limit_bytes=100), Backoff(random.Random(1)))
    found.codec, found.receives_events = codec, receives_events
    return found


def test_every_node_gets_commands_and_no_emitter() -> None:
    nodes = [peer("a"), peer("b", codec="")]
    assert receivers([nodes[0], peer("e", receives_events=False), nodes[1]]) == nodes
    assert receivers([]) == []


def test_peers_with_our_codec_get_our_packet_and_others_its_structure() -> None:
    ours, other, unknown = peer("a"), peer("b", codec="msgpack"), peer("c", codec="")
    emitter = peer("e", receives_events=False)
    assert event_receivers([ours, other, emitter, unknown], "json") == ([ours, unknown], [other])
    assert event_receivers([ours, other], "msgpack") == ([other], [ours])
    assert event_receivers([emitter], "json") == ([], [])


UID, OTHER = "00000000000000aa", "00000000000000bb"


def table(*uids: str) -> PeerTable:
    """A table with these peers."""
    found = PeerTable("11" * 8, random.Random(1))
    found._peers.update({uid: peer(uid) for uid in uids})
    return found


@pytest.mark.parametrize(
    ("room", "uid"),
    [(of_node("abc", UID), UID), ("abc." + UID.upper(), ""), ("abc" + UID, ""), (UID, ""), ("." + UID, UID), ("", ""),
     (7, ""), (None, ""), (("abc", UID), ""), (b"abc." + UID.encode(), "")],
)  # fmt: skip
def test_a_sid_names_its_node(room: Hashable, uid: str) -> None:
    assert owner_of(room) == uid


def test_sids_have_owners_and_other_rooms_have_none() -> None:
    known = table(UID, OTHER)
    one, two = known.get(UID), known.get(OTHER)
    ours = "11" * 8
    assert owners(known, ours, [of_node("x", UID)]) == [one]
    assert owners(known, ours, [of_node("x", UID), of_node("y", OTHER), of_node("z", UID)]) == [one, two]
    assert owners(known, ours, [of_node("x", ours)]) == []
    assert owners(known, ours, [of_node("x", UID), "room"]) is None
    assert owners(known, ours, []) is None


def test_a_sid_of_an_unknown_node_may_be_anywhere() -> None:
    assert owners(table(UID), "11" * 8, [of_node("x", OTHER)]) is None


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[PaperNode]]:
    with paper_mesh(3) as linked:
        yield linked


def told(nodes: Sequence[PaperNode], do: Callable[[], object]) -> list[int]:
    """How many messages each other node gets of something that the first one does; gossip is none of it."""
    one, *others = nodes
    got: dict[str, int] = {}

    def counting(node: Node) -> Callable[[Peer, ClusterMessage], None]:
        on_message = node.on_message

        def count(peer: Peer, message: ClusterMessage) -> None:
            got[node.uid] = got.get(node.uid, 0) + (peer.uid == one.manager.uid)
            on_message(peer, message)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for other in others:
            patch.setattr(other.manager._node, "on_message", counting(other.manager._node))
        do()
        assert one.manager.flush(5)
    return [got.get(other.manager.uid, 0) for other in others]


def test_what_is_for_a_sid_is_one_message_to_its_node(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    sid = two.connects("far")
    assert owner_of(sid) == two.manager.uid
    sio = one.server
    assert told(nodes, lambda: sio.emit("news", 1, to=sid)) == [1, 0]
    two.gets("news")
    assert told(nodes, lambda: sio.enter_room(sid, "red")) == [1, 0]
    assert told(nodes, lambda: sio.leave_room(sid, "red")) == [1, 0]
    assert told(nodes, lambda: sio.emit("asked", 1, to=sid, callback=print)) == [1, 0]
    assert told(nodes, lambda: sio.emit("room", 1, to="red")) == [1, 1]
    assert told(nodes, lambda: sio.disconnect(sid)) == [1, 0]
    eventually(lambda: not two.manager.is_connected(sid, "/"))


def test_a_call_of_a_client_asks_its_node_only(nodes: list[PaperNode]) -> None:
    one, two, three = nodes
    sid = two.connects("called")
    calling = gevent.spawn(one.manager.call, "sum", 1, room=sid, timeout=5)
    two.answers("called", "sum", 2)
    result = calling.get(timeout=5)
    assert (list(result), result.is_complete) == ([2], True)
    assert three.sent == []


def test_nobody_enters_the_room_of_a_client_elsewhere(nodes: list[PaperNode]) -> None:
    one, two, _ = nodes
    near, far = one.connects("near"), two.connects("far too")
    with pytest.raises(ValueError, match="is the sid of a client"):
        one.server.enter_room(near, far)
    assert one.server.rooms(near) == [near]
    one.server.enter_room(near, of_node("old", "00" * 8))
