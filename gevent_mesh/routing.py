"""Routing: which peers need a message.

Rules:

- What is for clients by their sids goes to the nodes that these name and to no other: a sid that is made here ends in
  this node's uid. What is for a room goes to every node, for any of them may have a client in it; with
  `room_interest` not to those that are known to have none (see `protocol.interest`). Emitters get nothing.
- A sid of a node that is not known (it may have left and joined again, under another uid) is a room like any other.
- Nobody enters the room of another client while its node is there, as in a single process of python-socketio.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from .protocol.frames import UID_CHARS, is_uid
from .protocol.interest import Copy
from .protocol.peers import Peer, PeerTable

__all__ = ["event_receivers", "interested", "of_node", "owner_of", "owners", "receivers"]

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


_COMPARABLE = frozenset((str, bytes, int))
"""Rooms whose copies at other nodes are equal to them and have the same hash. What is derived from these types may have
an equality and a hash of its own."""


def interested(
    peers: Iterable[Peer],
    copies: Mapping[str, Copy],
    namespace: str,
    rooms: Sequence[Hashable],
    now: float,
    ask: Callable[[Peer], None],
) -> list[Peer]:
    """The peers that an event for these rooms, or for everybody, goes to: all but those that are known to have nobody.

    Args:
        copies: what peers have told, by uid.
        ask: called with each peer whose lease should be got, or renewed.
    """
    for room in rooms:
        if type(room) not in _COMPARABLE:
            return list(peers)
    named = {owner_of(room) for room in rooms}
    wanted = rooms or (None,)
    copy_of = copies.get
    found: list[Peer] = []
    for peer in peers:
        copy = copy_of(peer.uid)
        if copy is None or copy.link is not peer.link or now >= copy.attend_at:
            ask(peer)
        if (
            copy is None
            or now >= copy.ends
            or copy.link is not peer.link
            or ((known := copy.rooms.get(namespace)) and not known.isdisjoint(wanted))
            or peer.uid in named
        ):
            found.append(peer)
    return found
