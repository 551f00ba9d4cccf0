"""Fan-out: delivery of an event to this node's own clients.

Rules:

- A packet is encoded once, whoever sent it; every client's queue gets the same object.
- Everything goes through ``server._send_eio_packet``, which test clients and the admin UI replace.
- It never waits and never runs application code: a client that turns out to be gone is closed in a greenlet of its own,
  because closing calls the application's disconnect handler.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import gevent
from engineio import packet as eio_packet

__all__ = ["Fanout"]


def _text(part: str) -> Any:
    return eio_packet.Packet(eio_packet.MESSAGE, part)


class _Attachment(eio_packet.Packet):  # type: ignore[misc]  # python-engineio has no types
    """A binary packet that clients on WebSocket and clients on polling can share.

    Engine.IO's own keeps the form that was asked for first and gives it to both: raw bytes to a polling client, which
    ends it, or base64 text to a WebSocket.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(eio_packet.MESSAGE, data)
        self._base64 = ""

    def encode(self, b64: bool = False) -> str | bytes:
        if not b64:
            raw: bytes = self.data
            return raw
        self._base64 = self._base64 or "b" + base64.b64encode(self.data).decode("ascii")
        return self._base64


def _send_all(server: Any, eio_sid: str, packets: Iterable[Any]) -> None:
    for packet in packets:
        server._send_eio_packet(eio_sid, packet)


class Fanout:
    """Delivers to the clients of one server.

    Args:
        manager: knows the rooms (a `socketio.Manager`).
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def participants(
        self, namespace: str, rooms: Sequence[Hashable], exclude: Iterable[Hashable]
    ) -> list[tuple[str, str]]:
        """Local clients in any of `rooms` (all of the namespace when empty) and in none of `exclude`.

        Returns:
            (sid, Engine.IO sid) of each, once.
        """
        members = self._manager.get_participants(namespace, list(rooms) or None)
        known = self._manager.rooms.get(namespace, {})
        skipped: set[Hashable] = set()
        for room in exclude:
            skipped.add(room)
            skipped.update(known.get(room, ()))
        return [member for member in members if member[0] not in skipped] if skipped else list(members)

    def deliver(
        self,
        namespace: str,
        rooms: Sequence[Hashable],
        exclude: Iterable[Hashable],
        encoded: Sequence[str | bytes],
    ) -> None:
        """Send an encoded Socket.IO packet to the selected local clients."""
        if namespace not in self._manager.rooms:
            return
        server = self._manager.server
        packets = [_Attachment(part) if isinstance(part, bytes) else _text(part) for part in encoded]
        for _, eio_sid in self.participants(namespace, rooms, exclude):
            if self._is_gone(eio_sid):
                gevent.spawn(_send_all, server, eio_sid, packets)
            else:
                _send_all(server, eio_sid, packets)

    def deliver_to(self, eio_sid: str, packet: Any) -> None:
        """Send a Socket.IO packet that is for one client only."""
        send = self._manager.server._send_packet
        if self._is_gone(eio_sid):
            gevent.spawn(send, eio_sid, packet)
        else:
            send(eio_sid, packet)

    def _is_gone(self, eio_sid: str) -> bool:
        """Whether the client has missed its ping, so that sending to it will close it."""
        socket = self._manager.server.eio.sockets.get(eio_sid)
        if socket is None:
            return False
        last_ping = socket.last_ping
        return bool(socket.closed or (last_ping and time.time() - last_ping > self._manager.server.eio.ping_timeout))
