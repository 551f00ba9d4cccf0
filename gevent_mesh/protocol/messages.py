"""Cluster messages: what nodes say to each other, in the shapes of Socket.IO's own cluster adapter.

A message is a msgpack map ``{uid, nsp, type, data}``. Type numbers and shapes are those of ``socket.io-adapter``; where
we need more than it has, we add keys, which its servers ignore. Numbers are append only.

Rules:

- What `parse` returns is safe to act on: every field that a handler reads has been checked here, and nowhere else.
- Room names are whatever Python can hash: msgpack turns tuples into lists, `parse` turns them back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgpack

from ..errors import MessageError, PayloadNotEncodable

__all__ = [
    "MAX_META_BYTES",
    "MAX_SID_CHARS",
    "MAX_USER_CHARS",
    "ClusterMessage",
    "MessageType",
    "UserId",
    "acknowledged_arguments",
    "broadcast",
    "broadcast_ack",
    "client_count",
    "disconnect_sockets",
    "encode",
    "is_sendable",
    "is_sid",
    "is_user",
    "options",
    "parse",
    "presence_delta",
    "presence_piece",
    "presence_version",
    "presence_wanted",
    "sockets_join",
    "sockets_leave",
    "unpack_meta",
]

MAX_REQUEST_ID_CHARS = 64
MAX_ROOM_DEPTH = 16
"""Tuples within tuples: msgpack nests deeper than Python can follow."""
MAX_USER_CHARS = 256
MAX_SID_CHARS = 128
MAX_META_BYTES = 4096
MAX_PRESENCE_CHANGES = 1000
MAX_NUMBER = 2**63

UserId = str | int
"""What applications call a user."""


class MessageType(IntEnum):
    """Append only. Types 1, 2 and 13 serve Node peers, which have no heartbeat frames and no BYE."""

    INITIAL_HEARTBEAT = 1
    HEARTBEAT = 2
    BROADCAST = 3
    SOCKETS_JOIN = 4
    SOCKETS_LEAVE = 5
    DISCONNECT_SOCKETS = 6
    FETCH_SOCKETS = 7
    FETCH_SOCKETS_RESPONSE = 8
    SERVER_SIDE_EMIT = 9
    SERVER_SIDE_EMIT_RESPONSE = 10
    BROADCAST_CLIENT_COUNT = 11
    BROADCAST_ACK = 12
    ADAPTER_CLOSE = 13
    PRESENCE = 36
    PRESENCE_WANTED = 37


@dataclass(slots=True)
class ClusterMessage:
    """One validated message.

    Attributes:
        type: what it asks for.
        uid: the node that sent it.
        nsp: the Socket.IO namespace.
        data: its fields; the constructors below show the shape for each type.
    """

    type: MessageType
    uid: str
    nsp: str
    data: dict[str, Any]


# ---------------------------------------------------------------------- making messages


def options(rooms: Sequence[Hashable] = (), exclude: Sequence[Hashable] = ()) -> dict[str, Any]:
    """Whom a message is for: members of any of `rooms` (all clients when empty) that are in none of `exclude`."""
    return {"rooms": rooms, "except": exclude, "flags": {}}


_KEPT_PACKER_BYTES = 1024 * 1024
# One for all: making one takes longer than packing a small message. It packs without letting other code run.
_packer = msgpack.Packer(use_bin_type=True)


def broadcast(
    opts: dict[str, Any],
    *,
    encoded: list[str | bytes] | None = None,
    codec: str = "",
    packet: list[Any] | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    """Data of a BROADCAST: an event for clients.

    Args:
        opts: whom it is for.
        encoded: the Socket.IO packet as the sender's packet class wrote it, and
        codec: the name of that form; a node whose clients get another one converts it, or
        packet: ``[event, *arguments]``, which every node can encode.
        request_id: names the request when clients' acknowledgements are wanted; the key is left out otherwise.
    """
    data: dict[str, Any] = {"opts": opts}
    if encoded is not None:
        data["encoded"], data["codec"] = encoded, codec
    else:
        data["packet"] = {"type": 2, "data": packet}
    if request_id is not None:
        data["requestId"] = request_id
    return data


def client_count(request_id: str, count: int) -> dict[str, Any]:
    """Data of a BROADCAST_CLIENT_COUNT: how many clients of one node the request went to."""
    return {"requestId": request_id, "clientCount": count}


def broadcast_ack(request_id: str, arguments: list[Any]) -> dict[str, Any]:
    """Data of a BROADCAST_ACK: what one client answered.

    ``packet`` is the first argument, as in the Node package; ``args`` holds all of them unless that is the only one.
    """
    data: dict[str, Any] = {"requestId": request_id, "packet": arguments[0] if arguments else None}
    if len(arguments) != 1:
        data["args"] = arguments
    return data


def acknowledged_arguments(data: dict[str, Any]) -> list[Any]:
    """The arguments in the data of a BROADCAST_ACK."""
    arguments: list[Any] = data["args"] if "args" in data else [data["packet"]]
    return arguments


def sockets_join(opts: dict[str, Any], rooms: Iterable[Hashable]) -> dict[str, Any]:
    """Data of a SOCKETS_JOIN: the selected clients enter `rooms`."""
    return {"opts": opts, "rooms": list(rooms)}


def sockets_leave(opts: dict[str, Any], rooms: Iterable[Hashable]) -> dict[str, Any]:
    """Data of a SOCKETS_LEAVE: the selected clients leave `rooms`."""
    return {"opts": opts, "rooms": list(rooms)}


def disconnect_sockets(opts: dict[str, Any], *, close: bool = False) -> dict[str, Any]:
    """Data of a DISCONNECT_SOCKETS: the selected clients are disconnected from the namespace."""
    return {"opts": opts, "close": close}


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


def encode(kind: MessageType, uid: str, nsp: str, data: dict[str, Any]) -> bytes:
    """Return the one encoding of a message, which every peer's outbox shares.

    Raises:
        PayloadNotEncodable: `data` holds a value that msgpack has no form for.
    """
    global _packer
    try:
        packed: bytes = _packer.pack({"type": kind.value, "data": data, "uid": uid, "nsp": nsp})
    except (TypeError, ValueError, OverflowError) as exc:
        raise PayloadNotEncodable(f"the message cannot be sent to other nodes: {exc}") from exc
    if len(packed) > _KEPT_PACKER_BYTES:
        # A packer never gives its buffer back: do not keep that of the largest message for ever.
        _packer = msgpack.Packer(use_bin_type=True)
    return packed


# ---------------------------------------------------------------------- reading messages


def parse(value: object) -> ClusterMessage:
    """Check a decoded msgpack value and return the message in it.

    Raises:
        MessageError: it is not a cluster message of a known type and shape.
    """
    if type(value) is not dict:
        raise MessageError("a cluster message must be a map")
    kind, uid, nsp = value.get("type"), value.get("uid"), value.get("nsp")
    if type(uid) is not str or type(nsp) is not str:
        raise MessageError("a cluster message needs a uid and an nsp")
    if type(kind) is not int or kind not in _CHECKS:
        raise MessageError(f"unknown message type {kind!r}")
    check = _CHECKS[kind]
    data = value.get("data")
    if type(data) is not dict:
        if check is not _nothing:
            raise MessageError(f"message type {kind} needs data")
        data = {}
    check(data)
    return ClusterMessage(_TYPES[kind], uid, nsp, data)


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise MessageError(what)


def _room(value: object, depth: int = MAX_ROOM_DEPTH) -> Hashable:
    if type(value) is list:
        if not depth:
            raise MessageError(f"a room is nested deeper than {MAX_ROOM_DEPTH} levels")
        return tuple(_room(item, depth - 1) for item in value)
    try:
        hash(value)
    except TypeError as exc:
        raise MessageError(f"a room cannot be {type(value).__name__}") from exc
    return value


def _room_list(data: dict[str, Any], key: str) -> None:
    rooms = data.get(key)
    if type(rooms) is not list:
        raise MessageError(f"{key} must be an array")
    # Nearly always plain strings: leave the list as it is then.
    for room in rooms:
        if type(room) is not str:
            data[key] = [_room(item) for item in rooms]
            return


def _opts(data: dict[str, Any]) -> None:
    opts = data.get("opts")
    if type(opts) is not dict:
        raise MessageError("opts must be a map")
    _room_list(opts, "rooms")
    _room_list(opts, "except")
    if type(opts.get("flags", {})) is not dict:
        raise MessageError("flags must be a map")


def _request_id(data: dict[str, Any]) -> None:
    request_id = data.get("requestId")
    _need(type(request_id) is str and 0 < len(request_id) <= MAX_REQUEST_ID_CHARS, "requestId must be a short text")


def _event(packet: object, what: str) -> None:
    _need(type(packet) is list and len(packet) > 0 and type(packet[0]) is str, f"{what} must be [event, ...arguments]")


def _broadcast(data: dict[str, Any]) -> None:
    _opts(data)
    encoded = data.get("encoded")
    if encoded is None:
        packet = data.get("packet")
        if type(packet) is not dict or packet.get("type") != 2:
            raise MessageError("a broadcast needs an EVENT packet")
        _event(packet.get("data"), "a broadcast's packet")
    elif type(encoded) is not list or not encoded:
        raise MessageError("encoded must be an array that is not empty")
    else:
        for part in encoded:
            if type(part) is not str and type(part) is not bytes:
                raise MessageError("encoded must hold text and binary only")
    _need(type(data.get("codec", "")) is str, "codec must be text")
    if data.get("requestId") is not None:
        _request_id(data)


def _move(data: dict[str, Any]) -> None:
    _opts(data)
    _room_list(data, "rooms")
    # To python-socketio None is the room of everybody in the namespace: whoever left it would be lost to its node.
    _need(None not in data["rooms"], "a client cannot enter or leave the room None")


def _disconnect(data: dict[str, Any]) -> None:
    _opts(data)
    _need(type(data.get("close", False)) is bool, "close must be true or false")


def _fetch(data: dict[str, Any]) -> None:
    _opts(data)
    _request_id(data)


def _fetched(data: dict[str, Any]) -> None:
    _request_id(data)
    sockets = data.get("sockets")
    _need(type(sockets) is list and all(type(socket) is dict for socket in sockets), "sockets must be an array of maps")


def _server_side(data: dict[str, Any]) -> None:
    _event(data.get("packet"), "a server-side event")
    if data.get("requestId") is not None:
        _request_id(data)


def _answer(data: dict[str, Any]) -> None:
    _request_id(data)
    data.setdefault("packet", None)


def _count(data: dict[str, Any]) -> None:
    _request_id(data)
    count = data.get("clientCount")
    _need(type(count) is int and count >= 0, "clientCount must be a number from 0")


def _ack(data: dict[str, Any]) -> None:
    _answer(data)
    _need(type(data.get("args", [])) is list, "args must be an array")


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
    try:
        unpack_meta(meta)
    except (ValueError, TypeError) as exc:
        raise MessageError("meta must hold a map") from exc
    # Neither infinite nor "not a number", which has no place in an order.
    _need(all(type(t) in (int, float) and 0 <= t < MAX_NUMBER for t in times[:2]), "times must be numbers from 0")


def _presence(data: dict[str, Any]) -> None:
    _number(data, "version")
    rows, gone = data.get("set", []), data.get("gone", [])
    if type(rows) is not list or type(gone) is not list or len(rows) + len(gone) > MAX_PRESENCE_CHANGES:
        raise MessageError(f"set and gone must be arrays with at most {MAX_PRESENCE_CHANGES} items in all")
    for row in rows:
        _row(row)
    _need(all(map(is_sid, gone)), "gone must hold sids")
    if "request" in data:
        _wanted(data)
        _need("set" in data and type(data.get("more")) is bool, "a piece needs set, and more as true or false")
    else:
        _need(("set" in data) is ("gone" in data), "set and gone go together")


def _wanted(data: dict[str, Any]) -> None:
    _number(data, "request")
    _number(data, "part")


def _nothing(data: dict[str, Any]) -> None:
    """Types that carry no data."""


_TYPES: dict[int, MessageType] = {kind.value: kind for kind in MessageType}
_CHECKS: dict[int, Callable[[dict[str, Any]], None]] = {
    MessageType.INITIAL_HEARTBEAT: _nothing,
    MessageType.HEARTBEAT: _nothing,
    MessageType.BROADCAST: _broadcast,
    MessageType.SOCKETS_JOIN: _move,
    MessageType.SOCKETS_LEAVE: _move,
    MessageType.DISCONNECT_SOCKETS: _disconnect,
    MessageType.FETCH_SOCKETS: _fetch,
    MessageType.FETCH_SOCKETS_RESPONSE: _fetched,
    MessageType.SERVER_SIDE_EMIT: _server_side,
    MessageType.SERVER_SIDE_EMIT_RESPONSE: _answer,
    MessageType.BROADCAST_CLIENT_COUNT: _count,
    MessageType.BROADCAST_ACK: _ack,
    MessageType.ADAPTER_CLOSE: _nothing,
    MessageType.PRESENCE: _presence,
    MessageType.PRESENCE_WANTED: _wanted,
}
