"""Routing: who gets what, and in which form."""

from __future__ import annotations

import random

from gevent_mesh.protocol.membership import Backoff, Member, PeerState
from gevent_mesh.protocol.peers import Peer
from gevent_mesh.protocol.session import Session
from gevent_mesh.routing import event_receivers, receivers


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
