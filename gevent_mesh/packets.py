"""Events as packets of Socket.IO: what clients get, and what nodes with other packet classes can convert.

Rules:

- An event is encoded once, by the server's own packet class, and nodes whose clients get the same form never decode it.
- Two forms are known to every node, python-socketio's own JSON and msgpack; any other is a private matter of the nodes
  that share it, and travels between others as plain values.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from socketio import packet as sio_packet
from socketio.msgpack_packet import MsgPackPacket

from .errors import MessageError, PayloadNotEncodable
from .stock import stock

__all__ = ["Packets", "arguments_of"]

_PLAIN = frozenset((str, int, float, bool, type(None)))
"""Types of arguments in which there can be no binary."""

_CODECS = {"json": sio_packet.Packet, "msgpack": MsgPackPacket}
"""The forms of packets that every node can read."""

_MAX_CODEC_CHARS = 128

_STOCK_DUMPS = stock(json.dumps, json)
_dumps = json.JSONEncoder(separators=(",", ":")).encode
"""`json.dumps` as python-socketio calls it; that makes such an encoder anew each time."""


class Packets:
    """The packet class of one server.

    Args:
        packet_class: of the server, or None for JSON.

    Attributes:
        codec: names the form: nodes whose names are equal exchange encoded packets.
    """

    def __init__(self, packet_class: Any = None) -> None:
        self._class: Any = packet_class or sio_packet.Packet
        self._is_stock = self._class is sio_packet.Packet
        self.codec = _codec_name(self._class)

    @property
    def is_known(self) -> bool:
        """Whether nodes whose clients get another form can read this one."""
        return self.codec in _CODECS

    def encode(self, event: str, arguments: Sequence[Any], namespace: str) -> list[str | bytes]:
        """An event as its packet: text or binary, and attachments behind it.

        Raises:
            TypeError: the packet class has no form for a value.
        """
        # The packet class looks for binary in every corner of the data, unless it is told that there is none.
        binary = False if _PLAIN.issuperset(map(type, arguments)) else None
        if binary is False and self._is_stock and self._class.json.dumps is _STOCK_DUMPS:
            return [_plain_packet([event, *arguments], namespace)]
        packet = self._class(sio_packet.EVENT, namespace=namespace, data=[event, *arguments], binary=binary)
        encoded = packet.encode()
        return encoded if isinstance(encoded, list) else [encoded]

    def numbered(self, event: list[Any], namespace: str, number: int) -> Any:
        """A packet whose receiver acknowledges with this number."""
        return self._class(sio_packet.EVENT, namespace=namespace, data=event, id=number)

    def plain(self, encoded: Sequence[str | bytes]) -> list[Any]:
        """``[event, *arguments]`` of a packet of ours, as plain values, for nodes whose clients get another form.

        Raises:
            PayloadNotEncodable: the packet class cannot read what it has written.
        """
        try:
            return _decode(self._class, encoded)
        except Exception as exc:  # whatever the packet class of an application raises
            raise PayloadNotEncodable(f"the event cannot be sent to nodes with another packet class: {exc}") from exc

    def for_clients(self, data: dict[str, Any], their_codec: str, namespace: str) -> list[str | bytes]:
        """The packet for our clients in the data of a BROADCAST, untouched if it has our form.

        Raises:
            MessageError: it has a form that is not known here, or cannot be read, or has no form for our clients.
        """
        encoded: list[str | bytes] | None = data.get("encoded")
        if encoded is not None and data.get("codec", their_codec) == self.codec:
            return encoded
        return self._encode_theirs(self.event(data, their_codec), namespace)

    def question(self, data: dict[str, Any], their_codec: str, namespace: str) -> list[Any]:
        """`event`, for packets of its own for each client (`numbered`).

        Raises:
            MessageError: see `for_clients`.
        """
        event = self.event(data, their_codec)
        self._encode_theirs(event, namespace)
        return event

    def _encode_theirs(self, event: list[Any], namespace: str) -> list[str | bytes]:
        try:
            return self.encode(event[0], event[1:], namespace)
        except Exception as exc:  # whatever the packet class of an application raises
            raise MessageError(f"an event that clients here cannot be sent: {type(exc).__name__}") from exc

    def event(self, data: dict[str, Any], their_codec: str) -> list[Any]:
        """``[event, *arguments]`` in the data of a BROADCAST, whatever form it came in.

        Raises:
            MessageError: it has a form that is not known here.
        """
        encoded = data.get("encoded")
        if encoded is None:
            event: list[Any] = data["packet"]["data"]
            return event
        return self.read(data.get("codec", their_codec), encoded)

    def read(self, codec: str, encoded: Sequence[str | bytes]) -> list[Any]:
        """``[event, *arguments]`` of a packet in some form.

        Raises:
            MessageError: the form is not known here, or it is malformed.
        """
        packet_class = self._class if codec == self.codec else _CODECS.get(codec)
        if packet_class is None:
            raise MessageError(f"an event in the form {codec!r}, which is not known here")
        try:
            event = _decode(packet_class, encoded)
        except Exception as exc:  # whatever the packet class of an application raises
            raise MessageError(f"not an event in the form {codec!r}: {type(exc).__name__}") from exc
        if not isinstance(event, list) or not event:
            raise MessageError(f"not an event in the form {codec!r}")
        return event


def arguments_of(data: Any) -> list[Any]:
    """The arguments of an event, by python-socketio's rule: a tuple is several, None is none, anything else is one."""
    if isinstance(data, tuple):
        return list(data)
    return [] if data is None else [data]


def _plain_packet(event: list[Any], namespace: str) -> str:
    """What python-socketio's own packet class makes of an event without binary, in half the time."""
    prefix = str(sio_packet.EVENT) if namespace == "/" else f"{sio_packet.EVENT}{namespace},"
    return prefix + _dumps(event)


def _decode(packet_class: Any, encoded: Sequence[str | bytes]) -> list[Any]:
    packet = packet_class(encoded_packet=encoded[0])
    for attachment in encoded[1:]:
        packet.add_attachment(attachment)
    plain: list[Any] = packet.data
    return plain


def _codec_name(packet_class: Any) -> str:
    if packet_class.encode is sio_packet.Packet.encode:
        return "json"
    if packet_class.encode is MsgPackPacket.encode:
        return "msgpack"
    return f"{packet_class.__module__}.{packet_class.__qualname__}"[:_MAX_CODEC_CHARS]
