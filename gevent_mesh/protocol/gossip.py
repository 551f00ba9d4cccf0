"""Gossip: nodes compare whom they are linked to, and name to each other whom one of them lacks.

Rules:

- Every heartbeat carries a digest of the nodes that its sender is linked to, itself included. Whoever hears of another
  digest than its own asks for what it lacks, and says whom it has: a whole list never travels.
- A node names only those that it is linked to itself. What it was only told it does not pass on, so that the name of a
  dead node cannot go round for ever.
- What a peer names is a candidate (`Membership.told`): nothing that is known changes by it, and no link ends.
- Only who was asked is listened to, and is believed `MAX_NAMED` names. One peer is asked in `ASK_SECONDS`, and the same
  one twice in a row only after `SAME_PEER_SECONDS`: views that differ for good, as while a mesh forms or when two nodes
  cannot reach each other, cost next to nothing, and a peer that always has something new keeps nobody else from
  being asked. Whoever asks is answered once in `ASK_SECONDS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from ..errors import MessageError
from .address import parse_address
from .frames import MAX_ADDRESS_CHARS, UID_CHARS, is_uid

__all__ = [
    "ASK_SECONDS",
    "MAX_KNOWN",
    "MAX_NAMED",
    "SAME_PEER_SECONDS",
    "Gossip",
    "check_nodes",
    "check_nodes_wanted",
    "digest",
    "lacking",
    "nodes",
    "nodes_wanted",
]

ASK_SECONDS = 5.0
"""Lower heals a split sooner, and costs more while many nodes start at once."""
SAME_PEER_SECONDS = 30.0
MAX_NAMED = 256
"""Nodes in one answer. Those that did not fit are named next time, when these are linked."""
MAX_KNOWN = 4096
"""Nodes that a question says are known: what does not fit may be named, and changes nothing."""

_UID_BYTES = UID_CHARS // 2
_DIGEST_BYTES = 8


def digest(uids: Iterable[str]) -> bytes:
    """The same for the same set of nodes, in any order."""
    return sha256("".join(sorted(uids)).encode()).digest()[:_DIGEST_BYTES]


class Gossip:
    """Whom to ask, and when."""

    def __init__(self) -> None:
        self._asked = ""
        self._asked_at = -math.inf
        self._is_open = False

    def asks(self, uid: str, theirs: object, ours: bytes, now: float) -> bool:
        """A peer told its digest, or whatever it sends instead: whether to ask it now, which counts as done."""
        if type(theirs) is not bytes or theirs == ours:
            return False
        if now - self._asked_at < (SAME_PEER_SECONDS if uid == self._asked else ASK_SECONDS):
            return False
        self._asked, self._asked_at, self._is_open = uid, now, True
        return True

    def takes(self, uid: str) -> bool:
        """A peer names nodes: whether it was asked to."""
        was_asked = self._is_open and uid == self._asked
        if was_asked:
            self._is_open = False
        return was_asked


# ---------------------------------------------------------------------- messages


def nodes_wanted(uids: Iterable[str]) -> dict[str, Any]:
    """Data of a NODES_WANTED: whom its sender is linked to or tries to reach, each as 8 bytes."""
    return {"known": bytes.fromhex("".join(list(uids)[:MAX_KNOWN]))}


def check_nodes_wanted(data: dict[str, Any]) -> None:
    """Check what came.

    Raises:
        MessageError: it is not of this shape.
    """
    known = data.get("known")
    if type(known) is not bytes or len(known) % _UID_BYTES or len(known) > MAX_KNOWN * _UID_BYTES:
        raise MessageError(f"known must be at most {MAX_KNOWN} uids of {_UID_BYTES} bytes")


def lacking(linked: Mapping[str, str], known: bytes) -> dict[str, str]:
    """Those of the nodes that we are linked to, with their addresses, that who sent a NODES_WANTED does not know."""
    theirs = {known[at : at + _UID_BYTES].hex() for at in range(0, len(known), _UID_BYTES)}
    found = [(uid, address) for uid, address in linked.items() if uid not in theirs and _is_address(address)]
    return dict(found[:MAX_NAMED])


def nodes(found: Mapping[str, str]) -> dict[str, Any]:
    """Data of a NODES: the answer."""
    return {"nodes": [list(pair) for pair in found.items()]}


def check_nodes(data: dict[str, Any]) -> None:
    """Check what came, and leave ``data["nodes"]`` as addresses by uid.

    Raises:
        MessageError: it is not of this shape.
    """
    found = data.get("nodes")
    if type(found) is not list or len(found) > MAX_NAMED or not all(map(_is_node, found)):
        raise MessageError(f"nodes must be at most {MAX_NAMED} pairs of a uid and an address")
    data["nodes"] = dict(found)


def _is_node(pair: object) -> bool:
    return type(pair) is list and len(pair) == 2 and is_uid(pair[0]) and _is_address(pair[1])


def _is_address(address: object) -> bool:
    if type(address) is not str or len(address) > MAX_ADDRESS_CHARS:
        return False
    try:
        parse_address(address)
    except ValueError:
        return False
    return True
