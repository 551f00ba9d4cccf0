"""Routing: which peers need a message.

Today every event goes to every node, for any of them may have a client in the room. Emitters get none.
"""

from __future__ import annotations

from collections.abc import Iterable

from .protocol.peers import Peer

__all__ = ["event_receivers", "receivers"]


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
