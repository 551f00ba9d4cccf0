"""Messages of presence: what a node says of its clients, and how another asks for all of it.

Rules:

- Rows travel as arrays, for there may be many: [sid, user, meta, since, updated], meta packed for itself. What a newer
  node adds at their end is ignored.
- A PRESENCE is one of three: a *delta* (`set` and `gone`), a *version* (neither), or a *piece* (`request`, and `set`).
- Every field is checked here, sizes included: what one node says is kept by all others.
"""

from __future__ import annotations

from typing import Any

import msgpack

from ..errors import MessageError
from .unpacking import read

__all__ = [
    "MAX_META_BYTES",
    "MAX_SID_CHARS",
    "MAX_USER_CHARS",
    "UserId",
    "check_presence",
    "check_wanted",
    "is_sendable",
    "is_sid",
    "is_user",
    "presence_delta",
    "presence_piece",
    "presence_version",
    "presence_wanted",
    "unpack_meta",
]

MAX_USER_CHARS = 256
MAX_SID_CHARS = 128
MAX_META_BYTES = 4096
MAX_CHANGES = 1000
"""In one message. We send fewer."""
MAX_NUMBER = 2**63

UserId = str | int
"""What applications call a user."""


# ---------------------------------------------------------------------- making messages


def presence_version(version: int) -> dict[str, Any]:
    """Data of a PRESENCE that tells which version the sender's word on its clients has reached."""
    return {"version": version}


def presence_delta(version: int, rows: list[list[Any]], gone: list[str]) -> dict[str, Any]:
    """Data of a PRESENCE that leads from the version before to this one.

    Args:
        version: counted from 1 for each node and namespace.
        rows: [sid, user, packed meta, since, updated] of clients that are new or have changed.
        gone: sids.
    """
    return {"version": version, "set": rows, "gone": gone}


def presence_piece(version: int, rows: list[list[Any]], *, request: int, part: int, more: bool) -> dict[str, Any]:
    """Data of a PRESENCE that answers a PRESENCE_WANTED; `more` if there is another part behind this one."""
    return {"version": version, "set": rows, "request": request, "part": part, "more": more}


def presence_wanted(request: int, part: int) -> dict[str, Any]:
    """Data of a PRESENCE_WANTED: asks for one part of all that a node has to say."""
    return {"request": request, "part": part}


# ---------------------------------------------------------------------- reading messages


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise MessageError(what)


def _number(data: dict[str, Any], key: str) -> None:
    number = data.get(key)
    _need(type(number) is int and 0 <= number < MAX_NUMBER, f"{key} must be a number from 0")


def is_sendable(text: str) -> bool:
    """Whether a text can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_sid(value: object) -> bool:
    """Whether this may be the id of a client."""
    return isinstance(value, str) and 0 < len(value) <= MAX_SID_CHARS and is_sendable(value)


def is_user(value: object) -> bool:
    """Whether this may be the id of a user."""
    if type(value) is int:
        return -MAX_NUMBER <= value < 2 * MAX_NUMBER
    return type(value) is str and len(value) <= MAX_USER_CHARS


def unpack_meta(packed: bytes) -> dict[Any, Any]:
    """What an application said of a client.

    Raises:
        ValueError, TypeError: that is no map, or cannot be one in Python.
    """
    meta = msgpack.unpackb(packed, strict_map_key=False)
    if type(meta) is not dict:
        raise ValueError("not a map")
    return meta


def _row(row: object) -> None:
    if type(row) is not list or len(row) < 5:
        raise MessageError("a present client must be [sid, user, meta, since, updated]")
    sid, user, meta, *times = row
    del row[5:]
    _need(is_sid(sid), "a sid must be a short text")
    _need(is_user(user), "a user must be a short text or a number")
    if type(meta) is not bytes or len(meta) > MAX_META_BYTES:
        raise MessageError(f"meta must be binary of at most {MAX_META_BYTES} bytes")
    _need(type(read(meta, strict_map_key=False)) is dict, "meta must hold a map")
    # Neither infinite nor "not a number", which has no place in an order.
    _need(all(type(t) in (int, float) and 0 <= t < MAX_NUMBER for t in times[:2]), "times must be numbers from 0")


def check_presence(data: dict[str, Any]) -> None:
    _number(data, "version")
    rows, gone = data.get("set", []), data.get("gone", [])
    if type(rows) is not list or type(gone) is not list or len(rows) + len(gone) > MAX_CHANGES:
        raise MessageError(f"set and gone must be arrays with at most {MAX_CHANGES} items in all")
    for row in rows:
        _row(row)
    _need(all(map(is_sid, gone)), "gone must hold sids")
    if "request" in data:
        check_wanted(data)
        _need("set" in data and type(data.get("more")) is bool, "a piece needs set, and more as true or false")
    else:
        _need(("set" in data) is ("gone" in data), "set and gone go together")


def check_wanted(data: dict[str, Any]) -> None:
    _number(data, "request")
    _number(data, "part")
