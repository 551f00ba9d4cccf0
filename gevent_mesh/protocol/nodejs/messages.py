"""Cluster messages to and from Node peers.

Rules:

- What is sent is rebuilt from the keys that Node knows, in its order. What would end a Node process (a BROADCAST
  without data, opts or packet, a number for rooms ...), or what Node has no form for, is never sent.
- What Node cannot count, it is asked to tell all of: `as_answer` counts.
- What comes gets the meaning that it has in Node, and is then checked like any other message.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgpack

from ...errors import MessageError, PayloadNotEncodable
from ..messages import ClusterMessage, MessageType, pack_socket, parse, unpack_socket
from ..unpacking import UNREADABLE, Budget, check_whole, read
from .values import NOBODY, from_node, to_node

__all__ = [
    "ANSWERS",
    "ReadPacket",
    "Translated",
    "Translator",
    "fetched_sockets",
    "is_request",
    "pack",
    "read_message",
    "repack_socket",
    "unpack",
]

SOCKETS_AT_A_TIME = 20
MAX_VALUES = 1_000_000
"""In one message, or of one client in a FETCH_SOCKETS_RESPONSE. More than our own nodes may send each other: events of
Node peers travel as values, not as encoded packets."""
_KEPT_TRANSLATIONS = 64
_KEPT_BYTES = 64 * 1024

ReadPacket = Callable[[str, list[Any]], list[Any]]
"""Turns an encoded Socket.IO packet, given the name of its form and its parts, into ``[event, *arguments]``."""


def read_message(payload: bytes) -> Iterator[ClusterMessage | None]:
    """Read a cluster message of a Node peer.

    Yields:
        None now and then, while it is large and not read to its end, then the message.

    Raises:
        MessageError: it is malformed.
    """
    if payload.startswith(_FETCHED):
        yield from _read_fetched(payload)
    else:
        yield _read(payload)


def _map_of(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A map whose keys JavaScript can have. Objects as keys could have hashes that a peer has chosen to be the same."""
    for key, _ in pairs:
        if type(key) is not str and type(key) is not int:
            raise ValueError(f"a key cannot be {type(key).__name__}")
    return dict(pairs)


_DECODE: dict[str, Any] = {
    "raw": False,
    "strict_map_key": False,
    "unicode_errors": "replace",
    "object_pairs_hook": _map_of,
}

_FETCHED = b"\x84\xa4type\x08"
"""How Node begins a FETCH_SOCKETS_RESPONSE, which tells of all its clients in one message."""


def _read_fetched(payload: bytes) -> Iterator[ClusterMessage | None]:
    """Read it one client after the other, and keep each in the form that `messages.packed_sockets` explains."""
    check_whole(payload)
    budget = Budget(MAX_VALUES)
    unpacker = msgpack.Unpacker(**budget.hooks(_DECODE), max_buffer_size=len(payload), read_size=len(payload))
    unpacker.feed(payload)
    fields: dict[str, Any] = {}
    data: dict[str, Any] = {}
    packed: list[tuple[str, bytes]] | None = None
    try:
        for _ in range(unpacker.read_map_header()):
            key = unpacker.unpack()
            if key != "data":
                fields[str(key)] = unpacker.unpack()
                continue
            for _ in range(unpacker.read_map_header()):
                name = unpacker.unpack()
                if name != "sockets":
                    data[str(name)] = unpacker.unpack()
                    continue
                packed = []
                for number in range(unpacker.read_array_header()):
                    budget.taken = 0
                    packed.append(_pack_theirs(unpacker.unpack()))
                    if number % SOCKETS_AT_A_TIME == SOCKETS_AT_A_TIME - 1:
                        yield None
    except UNREADABLE as exc:
        raise MessageError(f"undecodable: {type(exc).__name__}") from exc
    if packed is None or unpacker.tell() != len(payload):
        raise MessageError("no sockets, or more than that")
    # Checked without them, for that is done.
    message = parse({**fields, "data": {"requestId": data.get("requestId"), "packed": []}})
    message.data["packed"] = packed
    yield message


def _pack_theirs(socket: Any) -> tuple[str, bytes]:
    try:
        packed = pack_socket(from_node(socket))
    except PayloadNotEncodable as exc:
        raise MessageError(str(exc)) from exc
    return unpack_socket(packed)["id"], packed


def _read(payload: bytes) -> ClusterMessage:
    value = unpack(payload)
    if type(value) is not dict:
        raise MessageError("a cluster message must be a map")
    value = from_node(value, finite=value.get("type") == MessageType.BROADCAST)
    data = value.get("data")
    if type(data) is dict:
        _normalize(data)
    message = parse(value)
    if message.type > MessageType.ADAPTER_CLOSE:
        raise MessageError("a message that Node peers do not have")
    return message


def unpack(payload: bytes) -> Any:
    # A half of a surrogate pair, which JavaScript's texts may hold, becomes U+FFFD.
    return read(payload, max_values=MAX_VALUES, **_DECODE)


def _normalize(data: dict[str, Any]) -> None:
    """Give rooms the meaning that they have in Node."""
    opts = data.get("opts")
    if type(opts) is dict:
        _as_list(opts, "rooms")
        _as_list(opts, "except")
        if type(opts.get("rooms")) is list and None in opts["rooms"]:
            opts["rooms"] = [NOBODY if room is None else room for room in opts["rooms"]]
        if type(opts.get("except")) is list and None in opts["except"]:
            opts["except"] = [room for room in opts["except"] if room is not None]
    _as_list(data, "rooms")


def _as_list(holder: dict[str, Any], key: str) -> None:
    if type(holder.get(key)) is str:
        holder[key] = [holder[key]]


ANSWERS = frozenset(
    (
        MessageType.FETCH_SOCKETS_RESPONSE,
        MessageType.SERVER_SIDE_EMIT_RESPONSE,
        MessageType.BROADCAST_CLIENT_COUNT,
        MessageType.BROADCAST_ACK,
    )
)
"""Messages that do not show that their sender serves their namespace; all others do."""

_WORDS = {
    MessageType.COUNT_SOCKETS: MessageType.FETCH_SOCKETS,
    MessageType.LIST_ROOMS: MessageType.FETCH_SOCKETS,
}
"""Node's own words for what only we have."""
_COUNTED = (MessageType.SOCKETS_JOIN, MessageType.SOCKETS_LEAVE, MessageType.DISCONNECT_SOCKETS)
"""Commands that say nothing in return. Whoever wants to know how many clients one is done to fetches them before it."""

_READY = b"\xc1"
"""Stands before an answer that is in Node's form already. (msgpack never uses this byte.)"""


def is_request(message: ClusterMessage) -> bool:
    """Whether its sender waits for this node's answer."""
    return message.type is MessageType.FETCH_SOCKETS or (
        message.type in (MessageType.BROADCAST, MessageType.SERVER_SIDE_EMIT)
        and message.data.get("requestId") is not None
    )


def repack_socket(packed: bytes) -> bytes:
    """What `gevent_mesh.protocol.messages.pack_socket` has made of a client, as Node peers are told of it."""
    return pack(_socket(unpack_socket(packed)))


def fetched_sockets(uid: str, nsp: str, request_id: str, packed: list[bytes]) -> bytes:
    """A FETCH_SOCKETS_RESPONSE, as it is given to `Translator`.

    It may be large, so it is put together of what `repack_socket` has made, one client at a time.
    """
    packer = msgpack.Packer(use_bin_type=True)
    return b"".join(
        [
            _READY,
            packer.pack_map_header(4),
            packer.pack("type") + packer.pack(int(MessageType.FETCH_SOCKETS_RESPONSE)),
            packer.pack("data") + packer.pack_map_header(2),
            packer.pack("requestId") + packer.pack(request_id),
            packer.pack("sockets") + packer.pack_array_header(len(packed)),
            *packed,
            packer.pack("uid") + packer.pack(uid),
            packer.pack("nsp") + packer.pack(nsp),
        ]
    )


class Translated(NamedTuple):
    """A message for Node peers, without its kind.

    Attributes:
        shows: it shows that we serve its namespace.
    """

    body: bytes
    namespace: str
    shows: bool


class Translator:
    """Turns encoded cluster messages into what Node peers may get. One for all links, so that each is done once.

    Args:
        uid: ours. To Node peers, all that comes by way of us comes from us, and they answer to us.
        read_packet: reads encoded Socket.IO packets; what it raises costs that message.
        on_dropped: called with a reason for each message that cannot be translated.

    Attributes:
        dropped: how many there were.
    """

    def __init__(self, uid: str, read_packet: ReadPacket, on_dropped: Callable[[str], None]) -> None:
        self.dropped = 0
        self._uid = uid
        self._read_packet = read_packet
        self._on_dropped = on_dropped
        self._kept: OrderedDict[bytes, list[Translated]] = OrderedDict()
        self._rebuild: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
            MessageType.BROADCAST: self._broadcast,
            MessageType.SOCKETS_JOIN: _move,
            MessageType.SOCKETS_LEAVE: _move,
            MessageType.DISCONNECT_SOCKETS: _disconnect,
            MessageType.FETCH_SOCKETS: _fetch,
            MessageType.COUNT_SOCKETS: _fetch,
            MessageType.LIST_ROOMS: _fetch,
            MessageType.FETCH_SOCKETS_RESPONSE: _fetched,
            MessageType.SERVER_SIDE_EMIT: _server_side,
            MessageType.SERVER_SIDE_EMIT_RESPONSE: _answer,
            MessageType.BROADCAST_CLIENT_COUNT: _count,
            MessageType.BROADCAST_ACK: _answer,
        }

    def __call__(self, message: bytes) -> list[Translated]:
        """What Node peers get of a message, in order: nearly always one message, or nothing."""
        if message.startswith(_READY):
            return [Translated(message[len(_READY) :], "", shows=False)]
        if len(message) > _KEPT_BYTES:
            return self._translate(message)
        kept = self._kept
        if message in kept:
            return kept[message]
        translated = kept[message] = self._translate(message)
        if len(kept) > _KEPT_TRANSLATIONS:
            kept.popitem(last=False)
        return translated

    def _translate(self, message: bytes) -> list[Translated]:
        name = "a message"
        try:
            value = _native(message)
            kind = MessageType(value["type"])
            name = kind.name
            # What has no entry is between our own nodes only.
            rebuild = self._rebuild.get(kind)
            return [] if rebuild is None else self._rebuilt(kind, value, rebuild(value["data"]))
        except Exception as exc:  # noqa: BLE001  # the packet class of an application may raise, and make, anything
            self.dropped += 1
            self._on_dropped(f"{name}: {exc}")
            return []

    def _rebuilt(self, kind: MessageType, value: dict[str, Any], data: dict[str, Any]) -> list[Translated]:
        rebuilt = self._pack(_WORDS.get(kind, kind), value["nsp"], data)
        if kind in _COUNTED and value["data"].get("requestId") is not None:
            return [self._pack(MessageType.FETCH_SOCKETS, value["nsp"], _fetch(value["data"])), rebuilt]
        return [rebuilt]

    def _pack(self, kind: MessageType, nsp: str, data: dict[str, Any]) -> Translated:
        body = pack({"type": kind.value, "data": data, "uid": self._uid, "nsp": nsp})
        return Translated(body, nsp, kind not in ANSWERS)

    def _broadcast(self, data: dict[str, Any]) -> dict[str, Any]:
        if data.get("encoded") is None:
            event = data["packet"]["data"]
        else:
            event = self._read_packet(data.get("codec", ""), data["encoded"])
        if not event or type(event[0]) is not str:
            raise MessageError("not an event")
        rebuilt: dict[str, Any] = {"packet": {"type": 2, "data": to_node(event)}}
        if data.get("requestId") is not None:
            rebuilt["requestId"] = data["requestId"]
        rebuilt["opts"] = _opts(data["opts"])
        return rebuilt


def _native(message: bytes) -> dict[str, Any]:
    """What our own nodes get, decoded; of what an emitter has published, the message itself."""
    value: dict[str, Any] = msgpack.unpackb(message, raw=False, strict_map_key=False)
    return _native(value["data"]["message"]) if value["type"] == MessageType.RELAY else value


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _opts(opts: dict[str, Any]) -> dict[str, Any]:
    rooms, exclude = list(opts["rooms"]), list(opts["except"])
    if None in exclude:
        raise MessageError("nobody is addressed")
    # None is everybody to python-socketio, and nobody to Node.
    return {"rooms": [] if None in rooms else rooms, "except": exclude, "flags": to_node(opts.get("flags") or {})}


def _move(data: dict[str, Any]) -> dict[str, Any]:
    return {"opts": _opts(data["opts"]), "rooms": list(data["rooms"])}


def _disconnect(data: dict[str, Any]) -> dict[str, Any]:
    return {"opts": _opts(data["opts"]), "close": bool(data.get("close"))}


def _fetch(data: dict[str, Any]) -> dict[str, Any]:
    return {"opts": _opts(data["opts"]), "requestId": data["requestId"]}


def _fetched(data: dict[str, Any]) -> dict[str, Any]:
    return {"requestId": data["requestId"], "sockets": [_socket(socket) for socket in data["sockets"]]}


def _socket(socket: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": socket["id"],
        "handshake": to_node({**_HANDSHAKE, **(socket.get("handshake") or {})}),
        "rooms": list(socket.get("rooms") or ()),
        "data": to_node(socket.get("data") or {}),
    }


_HANDSHAKE: dict[str, Any] = {
    "headers": {},
    "time": "",
    "address": "",
    "xdomain": False,
    "secure": False,
    "issued": 0,
    "url": "",
    "query": {},
    "auth": {},
}
"""What programs on Node expect of every client."""


def _server_side(data: dict[str, Any]) -> dict[str, Any]:
    if type(data["packet"]) is not list:
        raise MessageError("not an event")
    request_id = data.get("requestId")
    rebuilt = {} if request_id is None else {"requestId": request_id}
    return {**rebuilt, "packet": to_node(data["packet"])}


def _answer(data: dict[str, Any]) -> dict[str, Any]:
    return {"requestId": data["requestId"], "packet": to_node(data["packet"])}


def _count(data: dict[str, Any]) -> dict[str, Any]:
    return {"requestId": data["requestId"], "clientCount": data["clientCount"]}
