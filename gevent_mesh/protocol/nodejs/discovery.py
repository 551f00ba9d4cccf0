"""The Node package's discovery server, seen from a client: bare msgpack, no challenge, always the whole roster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import MessageError
from ..discovery import Roster, parse_roster
from .messages import pack

__all__ = ["read_update", "register", "token_field"]

_INSTANCE = "nodejs-discovery"


def register(uid: str, address: str, tokens: Sequence[str]) -> bytes:
    """The message that registers a node with the Node package's discovery server. It holds the token in clear."""
    return pack({"type": "register", "serverId": uid, "address": address, **token_field(tokens)})


def read_update(message: Mapping[str, Any]) -> Roster:
    """Read the roster of the Node package's discovery server, which is always all of it.

    Raises:
        MessageError: it is none.
    """
    if message.get("type") != "update":
        raise MessageError("expected an update")
    return parse_roster(
        {
            "type": "roster",
            "instance": _INSTANCE,
            "version": 0,
            "complete": True,
            "servers": message.get("servers"),
        }
    )


def token_field(tokens: Sequence[str]) -> dict[str, str]:
    return {"token": tokens[0]} if tokens else {}
