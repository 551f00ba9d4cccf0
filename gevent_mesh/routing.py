"""Routing: which peers need a message.

Rules:

- What is for clients by their sids goes to the nodes that these name and to no other: a sid that is made here ends in
  this node's uid. What is for a room goes to every node, for any of them may have a client in it. Emitters get nothing.
- A sid of a node that is not known (it may have left and joined again, under another uid) is a room like any other.
- Nobody enters the room of another client while its node is there, as in a single process of python-socketio.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from .protocol.frames import UID_CHARS, is_uid
from .protocol.peers import Peer, PeerTable

__all__ = ["event_receivers", "of_node", "owner_of", "owners", "receivers"]

_SEPARATOR = "."
"""Not in python-engineio's ids, which are base64 for URLs."""


def of_node(sid: str, uid: str) -> str:
    """A sid that names the node of its client."""
    return f"{sid}{_SEPARATOR}{uid}"


def owner_of(room: Hashable) -> str:
    """The uid of the node that a sid names; empty for other rooms."""
    if not isinstance(room, str) or room[-UID_CHARS - 1 : -UID_CHARS] != _SEPARATOR:
        return ""
    uid = room[-UID_CHARS:]
    return uid if is_uid(uid) else ""


def owners(table: PeerTable, own_uid: str, rooms: Sequence[Hashable]) -> list[Peer] | None:
    """The peers that alone can have members of these rooms, when all of them are sids.

    Returns:
        None when any node may have some.
    """
    found: dict[str, Peer] = {}
    for room in rooms:
        uid = owner_of(room)
        if uid == own_uid:
            continue
        peer = table.get(uid)
        if peer is None:
            return None
        found[uid] = peer
    return list(found.values()) if rooms else None


def receivers(peers: Iterable[Peer]) -> list[Peer]:
    """The peers that a command or a request goes to."""
    return [peer for peer in peers if peer.receives_events]


def event_receivers(peers: Iterable[Peer], codec: str) -> tuple[list[Peer], list[Peer]]:
    """The peers that an event goes to: those that get our encoded packet, and those that need it structured.

    A peer that has never been linked has not told its codec. It gets the packet, with the codec's name beside it.
    """
    same: list[Peer] = []
    others: list[Peer] = []
    for peer in peers:
        if peer.receives_events:
            (same if peer.codec in (codec, "") else others).append(peer)
    return same, others
