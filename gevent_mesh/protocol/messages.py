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
from functools import lru_cache
from typing import Any

import msgpack

from ..errors import MessageError, PayloadNotEncodable
from .frames import MAX_NAME_CHARS, is_uid
from .gossip import check_nodes, check_nodes_wanted
from .interest import check_interest, check_interest_known, check_interest_wanted
from .presence_messages import check_presence, check_wanted
from .unpacking import DECODE, FREE_BYTES, count_values, read

__all__ = [
    "OWN_TYPES_FROM",
    "ClusterMessage",
    "MessageType",
    "acknowledged_arguments",
    "answer_count",
    "answer_rooms",
    "ask",
    "broadcast",
    "broadcast_ack",
    "client_count",
    "clients_gone",
    "count_servers",
    "disconnect_sockets",
    "encode",
    "encode_anywhere",
    "encode_event",
    "fetch_sockets",
    "one_client",
    "options",
    "pack_socket",
    "packed_sockets",
    "parse",
    "publish",
    "relay",
    "relayed",
    "replied",
    "reply",
    "reply_error",
    "server_side_answer",
    "server_side_emit",
    "sockets_join",
    "sockets_leave",
    "told",
    "told_all",
    "unpack_socket",
]

MAX_REQUEST_ID_CHARS = 64
OWN_TYPES_FROM = 32
"""Message types from here on are ours alone."""
MAX_NUMBER = 2**63 - 1
MAX_REFUSED = 1000
"""Numbers of messages that one RELAYED may name as refused."""
MAX_QUESTION_SECONDS = 3600.0
"""How long a node is at a question of an emitter, at the most."""
MAX_KEPT_NSP_CHARS = 256
"""Longer ones are not kept: where a server takes any, clients choose them, and a megabyte is a name."""
MAX_ROOM_DEPTH = 16
"""Tuples within tuples: msgpack nests deeper than Python can follow."""


class MessageType(IntEnum):
    """Append only. Types 1, 2 and 13 serve Node peers, which have no heartbeat frames and no BYE; those from 32 on are
    ours alone, and never sent to Node peers. 36 and 37 are presence's, 40 to 46 the emitters', 50 and 51 gossip's,
    52 to 54 room interest's."""

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
    ANSWER = 32
    COUNT_SOCKETS = 33
    LIST_ROOMS = 34
    CLIENTS_GONE = 35
    PRESENCE = 36
    PRESENCE_WANTED = 37
    PUBLISH = 40
    RELAY = 41
    RELAYED = 42
    ASK = 43
    TOLD = 44
    REPLY = 45
    COUNT_SERVERS = 46
    NODES_WANTED = 50
    NODES = 51
    INTEREST_WANTED = 52
    INTEREST = 53
    INTEREST_KNOWN = 54


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


def clients_gone(request_id: str, count: int) -> dict[str, Any]:
    """Data of a CLIENTS_GONE: so many of the clients that were asked will never acknowledge."""
    return {"requestId": request_id, "count": count}


def sockets_join(opts: dict[str, Any], rooms: Iterable[Hashable], request_id: str | None = None) -> dict[str, Any]:
    """Data of a SOCKETS_JOIN: the selected clients enter `rooms`. With a request id the answer says how many."""
    return _with_id({"opts": opts, "rooms": list(rooms)}, request_id)


def sockets_leave(opts: dict[str, Any], rooms: Iterable[Hashable], request_id: str | None = None) -> dict[str, Any]:
    """Data of a SOCKETS_LEAVE: the selected clients leave `rooms`. With a request id the answer says how many."""
    return _with_id({"opts": opts, "rooms": list(rooms)}, request_id)


def disconnect_sockets(opts: dict[str, Any], *, close: bool = False, request_id: str | None = None) -> dict[str, Any]:
    """Data of a DISCONNECT_SOCKETS: the selected clients leave the namespace. With a request id the answer counts them.

    Args:
        close: end their connections, and so all of their namespaces.
    """
    return _with_id({"opts": opts, "close": close}, request_id)


def one_client(data: dict[str, Any]) -> dict[str, Any]:
    """Data of a SOCKETS_JOIN, SOCKETS_LEAVE or DISCONNECT_SOCKETS that is for the client with the sid in `opts` alone.

    Without it, what an application takes for a sid, and is the name of a room, would be that room.
    """
    return {**data, "client": True}


def fetch_sockets(opts: dict[str, Any], request_id: str) -> dict[str, Any]:
    """Data of a FETCH_SOCKETS, a COUNT_SOCKETS or a LIST_ROOMS: what to tell of the selected clients."""
    return {"opts": opts, "requestId": request_id}


def packed_sockets(request_id: str, packed: list[bytes], *, more: bool = False) -> dict[str, Any]:
    """Data of a FETCH_SOCKETS_RESPONSE for a node of ours.

    A receiver that keeps a hundred thousand small maps makes the garbage collector stop everybody for long; one that
    keeps as many pieces of bytes does not.

    Args:
        packed: of each socket what `pack_socket` returns.
        more: another piece of this node's answer follows.
    """
    return _with_more({"requestId": request_id, "packed": packed}, more)


def pack_socket(socket: dict[str, Any]) -> bytes:
    """Encode ``{id, handshake, rooms, data}`` by itself.

    Raises:
        PayloadNotEncodable: it holds a value that msgpack has no form for, such as an unusual room.
    """
    return _checked(_pack(socket), {})


def unpack_socket(packed: bytes) -> dict[str, Any]:
    """Read what `pack_socket` has made.

    Raises:
        MessageError: it is something else.
    """
    socket = read(packed, **DECODE)
    _socket(socket)
    checked: dict[str, Any] = socket
    return checked


def answer_count(request_id: str, count: int) -> dict[str, Any]:
    """Data of an ANSWER to a COUNT_SOCKETS, or to a command that was sent with a request id."""
    return {"requestId": request_id, "count": count}


def answer_rooms(request_id: str, rooms: Iterable[tuple[Hashable, int]], *, more: bool = False) -> dict[str, Any]:
    """Data of an ANSWER to a LIST_ROOMS: rooms and how many of the selected clients are in each."""
    return _with_more({"requestId": request_id, "rooms": list(rooms)}, more)


def server_side_emit(packet: list[Any], request_id: str | None = None) -> dict[str, Any]:
    """Data of a SERVER_SIDE_EMIT: ``[event, *arguments]`` for servers, with an id when they should answer."""
    return {"packet": packet} if request_id is None else {"requestId": request_id, "packet": packet}


def server_side_answer(request_id: str, value: Any, error: str = "") -> dict[str, Any]:
    """Data of a SERVER_SIDE_EMIT_RESPONSE.

    Args:
        error: why there is no value; Node peers take no notice of it.
    """
    data = {"requestId": request_id, "packet": value}
    return {**data, "error": error} if error else data


def publish(number: int, packed: bytes) -> dict[str, Any]:
    """Data of a PUBLISH: an emitter's message for all nodes, to the one that it is linked to.

    Args:
        number: counts the emitter's messages, from 1.
        packed: a whole cluster message, with the emitter's uid. It travels as binary, so that nobody encodes it again.
    """
    return {"n": number, "message": packed}


def relay(emitter: str, number: int, packed: bytes) -> dict[str, Any]:
    """Data of a RELAY: an emitter's message, passed on by the node that it is linked to."""
    return {"from": emitter, "n": number, "message": packed}


def relayed(upto: int, refused: Sequence[int] = ()) -> dict[str, Any]:
    """Data of a RELAYED: every node has all of the emitter's messages up to this number, but for those `refused`."""
    return {"upto": upto, "refused": list(refused)} if refused else {"upto": upto}


def told(request_id: str, number: int, arguments: list[Any]) -> dict[str, Any]:
    """Data of a TOLD: what one client has answered to an emitter's event; `number` counts the answers, from 1."""
    return {"requestId": request_id, "number": number, "args": arguments}


def told_all(request_id: str) -> dict[str, Any]:
    """Data of a TOLD: no more answers will come."""
    return {"requestId": request_id, "done": True}


def count_servers(request_id: str) -> dict[str, Any]:
    """Data of a COUNT_SERVERS: an emitter asks how many nodes serve a namespace. It is in an ASK only."""
    return {"requestId": request_id}


def ask(request_id: str, timeout: float, packed: bytes) -> dict[str, Any]:
    """Data of an ASK: an emitter's question, to the node that it is linked to.

    Args:
        request_id: names it in answers; another one each time that it is asked.
        timeout: seconds that the node may take.
        packed: a whole cluster message, with the emitter's uid and a request id of its own.
    """
    return {"requestId": request_id, "timeout": timeout, "message": packed}


def reply(request_id: str, packed: list[bytes]) -> dict[str, Any]:
    """Data of a REPLY: a piece of the answer to an ASK.

    Args:
        packed: whole cluster messages, each with the uid of the node that answers.
    """
    return {"requestId": request_id, "messages": packed}


def replied(request_id: str, missing: Iterable[str], expected: int, received: int) -> dict[str, Any]:
    """Data of the last REPLY: what is missing, as `Outcome` has it."""
    return {"requestId": request_id, "missing": list(missing), "expected": expected, "received": received}


def reply_error(request_id: str, error: str) -> dict[str, Any]:
    """Data of the last REPLY when there is no answer: why."""
    return {"requestId": request_id, "error": error}


def _with_id(data: dict[str, Any], request_id: str | None) -> dict[str, Any]:
    return data if request_id is None else {**data, "requestId": request_id}


def _with_more(data: dict[str, Any], more: bool) -> dict[str, Any]:
    return {**data, "more": True} if more else data


def encode(kind: MessageType, uid: str, nsp: str, data: dict[str, Any]) -> bytes:
    """Return the one encoding of a message, which every peer's outbox shares.

    Raises:
        PayloadNotEncodable: `data` holds a value that msgpack has no form for.
    """
    return _checked(_pack({"type": kind.value, "data": data, "uid": uid, "nsp": nsp}), data)


def encode_event(
    uid: str, nsp: str, rooms: Sequence[Hashable], exclude: Sequence[Hashable], encoded: list[str | bytes], codec: str
) -> bytes:
    """What `encode` makes of a BROADCAST with an encoded packet, put together from pieces that do not change.

    Raises:
        PayloadNotEncodable: a room, or an excluded one, is a value that msgpack has no form for.
    """
    if len(nsp) > MAX_KEPT_NSP_CHARS:
        return encode(MessageType.BROADCAST, uid, nsp, broadcast(options(rooms, exclude), encoded=encoded, codec=codec))
    before, between, behind = _event_pieces(uid, nsp, codec)
    opts = _pack(options(rooms, exclude)) if rooms or exclude else _EVERYBODY
    packed = b"".join((before, opts, between, _pack(encoded), behind))
    return (
        packed if len(packed) <= FREE_BYTES else _checked(packed, broadcast(options(rooms, exclude), encoded=encoded))
    )


@lru_cache(maxsize=256)
def _event_pieces(uid: str, nsp: str, codec: str) -> tuple[bytes, bytes, bytes]:
    """The bytes of an event before the options, between them and the packet, and behind that."""
    data = broadcast(options(), encoded=_NO_PACKET, codec=codec)
    packed = encode(MessageType.BROADCAST, uid, nsp, data)
    before, _, rest = packed.partition(_EVERYBODY)
    # The name of the namespace, which may be anything, comes behind both.
    between, _, behind = rest.partition(_pack(_NO_PACKET))
    return before, between, behind


def _pack(value: object) -> bytes:
    global _packer
    try:
        packed: bytes = _packer.pack(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise PayloadNotEncodable(f"the message cannot be sent to other nodes: {exc}") from exc
    if len(packed) > _KEPT_PACKER_BYTES:
        # A packer never gives its buffer back: do not keep that of the largest message for ever.
        _packer = msgpack.Packer(use_bin_type=True)
    return packed


_NO_PACKET: list[str | bytes] = [b"the packet"]
_EVERYBODY = _pack(options())


def encode_anywhere(kind: MessageType, uid: str, nsp: str, data: dict[str, Any]) -> bytes:
    """`encode` for a process with several threads: values may have code of their own, in which another thread runs."""
    return _checked(_pack_anywhere({"type": kind.value, "data": data, "uid": uid, "nsp": nsp}), data)


def _pack_anywhere(value: dict[str, Any]) -> bytes:
    try:
        packed: bytes = msgpack.packb(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise PayloadNotEncodable(f"the message cannot be sent to other nodes: {exc}") from exc
    return packed


_OPAQUE = frozenset(("encoded", "message", "messages", "packed"))
"""Fields that hold a few large texts or binaries."""


def _checked(packed: bytes, data: dict[str, Any]) -> bytes:
    """The encoded message, if others will read it: they take so many values in one message and no more."""
    if len(packed) > FREE_BYTES:
        counted = packed
        if not _OPAQUE.isdisjoint(data):
            counted = _pack_anywhere({key: value for key, value in data.items() if key not in _OPAQUE})
        try:
            count_values(counted)
        except ValueError as exc:
            raise PayloadNotEncodable(f"the message cannot be sent to other nodes: {exc}") from exc
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
    known = _KNOWN.get(kind) if type(kind) is int else None
    if known is None:
        raise MessageError("unknown message type")
    kind, check = known
    data = value.get("data")
    if type(data) is not dict:
        if check is not _nothing:
            raise MessageError(f"message type {kind.value} needs data")
        data = {}
    check(data)
    return ClusterMessage(kind, uid, nsp, data)


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
    for key in ("rooms", "except"):
        # Nearly always there is none to look at.
        if opts.get(key) != []:
            _room_list(opts, key)
    if type(opts.get("flags", _NO_FLAGS)) is not dict:
        raise MessageError("flags must be a map")


_NO_FLAGS: dict[str, Any] = {}


def _request_id(data: dict[str, Any]) -> None:
    request_id = data.get("requestId")
    _need(type(request_id) is str and 0 < len(request_id) <= MAX_REQUEST_ID_CHARS, "requestId must be a short text")


def _one_client(data: dict[str, Any]) -> None:
    _need(type(data.get("client", False)) is bool, "client must be true or false")
    _need(not data.get("client") or len(data["opts"]["rooms"]) == 1, "a client has one sid")


def _optional_request_id(data: dict[str, Any]) -> None:
    if data.get("requestId") is not None:
        _request_id(data)


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
    codec = data.get("codec", "")
    if type(codec) is not str or len(codec) > MAX_NAME_CHARS:
        raise MessageError("codec must be a short text")
    if data.get("requestId") is not None:
        _request_id(data)


def _move(data: dict[str, Any]) -> None:
    _opts(data)
    _optional_request_id(data)
    _one_client(data)
    _room_list(data, "rooms")
    # To python-socketio None is the room of everybody in the namespace: whoever left it would be lost to its node.
    _need(None not in data["rooms"], "a client cannot enter or leave the room None")


def _disconnect(data: dict[str, Any]) -> None:
    _opts(data)
    _optional_request_id(data)
    _one_client(data)
    _need(type(data.get("close", False)) is bool, "close must be true or false")


def _fetch(data: dict[str, Any]) -> None:
    _opts(data)
    _request_id(data)


def _fetched(data: dict[str, Any]) -> None:
    _request_id(data)
    _more(data)
    if "packed" in data:
        packed = data["packed"]
        _need(type(packed) is list and all(type(one) is bytes for one in packed), "packed must be an array of binary")
        # Read now, so that whoever reads it later need not be afraid of it; and dropped again, see `packed_sockets`.
        data["packed"] = [(unpack_socket(one)["id"], one) for one in packed]
        return
    sockets = data.get("sockets")
    if type(sockets) is not list:
        raise MessageError("sockets must be an array")
    for socket in sockets:
        _socket(socket)


def _socket(socket: object) -> None:
    if type(socket) is not dict:
        raise MessageError("a socket must be a map")
    _need(type(socket.get("id")) is str, "a socket needs an id")
    _room_list(socket, "rooms")
    _need(type(socket.get("handshake")) is dict, "a socket's handshake must be a map")


def _answered(data: dict[str, Any]) -> None:
    _request_id(data)
    _more(data)
    if "rooms" in data:
        rooms = data["rooms"]
        _need(
            type(rooms) is list and all(type(pair) is list and len(pair) == 2 for pair in rooms), "rooms must be pairs"
        )
        data["rooms"] = [(_room(room), _number(count)) for room, count in rooms]
    else:
        _number(data.get("count"))


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise MessageError("a count must be a number from 0")
    return value


def _more(data: dict[str, Any]) -> None:
    _need(type(data.get("more", False)) is bool, "more must be true or false")


def _gone(data: dict[str, Any]) -> None:
    _request_id(data)
    _number(data.get("count"))


def _server_side(data: dict[str, Any]) -> None:
    _event(data.get("packet"), "a server-side event")
    _optional_request_id(data)


def _answer(data: dict[str, Any]) -> None:
    _request_id(data)
    data.setdefault("packet", None)
    _need(type(data.get("error", "")) is str, "an error must be text")


def _count(data: dict[str, Any]) -> None:
    _request_id(data)
    _number(data.get("clientCount"))


def _ack(data: dict[str, Any]) -> None:
    _answer(data)
    _need(type(data.get("args", [])) is list, "args must be an array")


def _published(data: dict[str, Any]) -> None:
    _positive(data.get("n"))
    _need(type(data.get("message")) is bytes, "a message in a message must be binary")


def _relay(data: dict[str, Any]) -> None:
    _published(data)
    _need(is_uid(data.get("from")), "a relayed message needs the uid of its emitter")


def _relayed(data: dict[str, Any]) -> None:
    _positive(data.get("upto"))
    refused = data.get("refused", [])
    _need(type(refused) is list and len(refused) <= MAX_REFUSED, f"refused must be an array of at most {MAX_REFUSED}")
    for number in refused:
        _positive(number)


def _told(data: dict[str, Any]) -> None:
    _request_id(data)
    if data.get("done") is not True:
        _positive(data.get("number"))
        _need(type(data.get("args")) is list, "args must be an array")


def _ask(data: dict[str, Any]) -> None:
    _request_id(data)
    timeout = data.get("timeout")
    _need(type(timeout) in (int, float) and 0 < timeout <= MAX_QUESTION_SECONDS, "a timeout must be up to an hour")  # type: ignore[operator]  # a number by then
    _need(type(data.get("message")) is bytes, "a message in a message must be binary")


def _reply(data: dict[str, Any]) -> None:
    _request_id(data)
    if "messages" in data:
        _all(bytes, data["messages"], "messages must be an array of binary")
    elif "error" in data:
        _need(type(data["error"]) is str, "an error must be text")
    else:
        _all(str, data.get("missing"), "missing must be an array of text")
        _number(data.get("expected"))
        _number(data.get("received"))


def _all(kind: type, values: object, what: str) -> None:
    _need(type(values) is list and all(type(value) is kind for value in values), what)


def _positive(value: object) -> None:
    _need(type(value) is int and 0 < value <= MAX_NUMBER, "a message's number must be from 1 to 2 ** 63 - 1")


def _nothing(data: dict[str, Any]) -> None:
    """Types that carry no data."""


_CHECKS: dict[MessageType, Callable[[dict[str, Any]], None]] = {
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
    MessageType.ANSWER: _answered,
    MessageType.COUNT_SOCKETS: _fetch,
    MessageType.LIST_ROOMS: _fetch,
    MessageType.CLIENTS_GONE: _gone,
    MessageType.PRESENCE: check_presence,
    MessageType.PRESENCE_WANTED: check_wanted,
    MessageType.PUBLISH: _published,
    MessageType.RELAY: _relay,
    MessageType.RELAYED: _relayed,
    MessageType.ASK: _ask,
    MessageType.TOLD: _told,
    MessageType.REPLY: _reply,
    MessageType.COUNT_SERVERS: _request_id,
    MessageType.NODES_WANTED: check_nodes_wanted,
    MessageType.NODES: check_nodes,
    MessageType.INTEREST_WANTED: check_interest_wanted,
    MessageType.INTEREST: check_interest,
    MessageType.INTEREST_KNOWN: check_interest_known,
}
_KNOWN = {kind.value: (kind, check) for kind, check in _CHECKS.items()}
