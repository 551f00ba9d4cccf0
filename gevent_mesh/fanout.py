"""Fan-out: delivery of an event to this node's own clients.

Rules:

- A packet is encoded once, whoever sent it. Every client's socket is given the same frame (`outlets`), or its queue the
  same packet.
- For who has no outlet, or none that is free, it goes through ``server._send_eio_packet``; for everybody they do when
  somebody has replaced that (test clients, the admin UI), or has python-engineio log each packet.
- One after the other (`turn`): a delivery to very many gives way in between, and what others emit meanwhile, perhaps
  because they have seen it, must not come before it anywhere.
- Events that one read of a link has brought are *gathered* (`gather`), and what is for the same client costs one write.
  Nobody can tell: whoever gathers flushes before anybody else runs, and before it does anything else for clients.
  Nothing is gathered while somebody has the turn, nor for many clients at once, nor where each packet is to be seen,
  nor for clients without outlets, nor what is large: its frame is one for all, and gathered it would be one for each.
- Whoever gathers lets the writers of queues run when much waits in them, as one who emits does.
- It never runs application code: a client that turns out to be gone is closed in a greenlet of its own, because closing
  calls the application's disconnect handler.
"""

from __future__ import annotations

import base64
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

import gevent
from engineio import packet as eio_packet
from engineio import socket as eio_socket
from engineio.socket import Socket
from gevent.lock import Semaphore

from .net.lines import LinesPerSecond
from .net.pause import at_work, in_slices
from .outlets import Outlet
from .protocol.websocket import Opcode, frame
from .selection import members_of
from .stock import stock

__all__ = ["Fanout", "Turn"]

FEW = 50
"""So many clients are delivered to between two looks at the time."""
MANY = 100
"""To so many clients is written at once, or nothing is gathered for them: it must not take long."""
GATHERED_BYTES = 256 * 1024
"""So much is gathered at the most, and one event; what goes to several clients counts for each of them. An event that
is more by itself is not gathered."""
TURN_SECONDS = 0.5
"""Who waits for its turn says so often that it is not stuck."""

_STOCK_SEND = stock(Socket.send, eio_socket)
_NOBODY: Mapping[str, str] = {}
_NONE: dict[str, Outlet] = {}


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


class _Parcel:
    """One event, in the forms that clients take it in."""

    def __init__(self, encoded: Sequence[str | bytes]) -> None:
        self._encoded = encoded
        self._packets: list[Any] = []
        self._frames = b""

    @property
    def packets(self) -> list[Any]:
        """For queues."""
        if not self._packets:
            self._packets = [_Attachment(part) if isinstance(part, bytes) else _text(part) for part in self._encoded]
        return self._packets

    @property
    def frames(self) -> bytes:
        """For sockets: what gevent-websocket makes of the packets."""
        self._frames = self._frames or b"".join(_frame(part) for part in self._encoded)
        return self._frames


def _frame(part: str | bytes) -> bytes:
    if isinstance(part, bytes):
        return frame(Opcode.BINARY, part, mask=False)
    # A lone surrogate has no form in UTF-8; clients would hang up on the whole frame.
    return frame(Opcode.TEXT, b"4" + part.encode("utf-8", "replace"), mask=False)


def _send_all(server: Any, eio_sid: str, packets: Iterable[Any]) -> None:
    for packet in packets:
        server._send_eio_packet(eio_sid, packet)


class Turn:
    """A lock that a greenlet may take again, and that the hub, which must not wait, goes past.

    (A context manager made of a generator costs three times as much, and gevent's RLock half as much again.)

    Attributes:
        depth: how often it is taken now.
    """

    __slots__ = ("_free", "_owner", "depth")

    def __init__(self) -> None:
        self._free = Semaphore()
        self._owner: Any = None
        self.depth = 0

    def __enter__(self) -> None:
        current = gevent.getcurrent()
        if self._owner is not current:
            if current is gevent.get_hub():
                return
            while not self._free.acquire(timeout=TURN_SECONDS):
                at_work()
            self._owner = current
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        if self._owner is gevent.getcurrent():
            self.depth -= 1
            if not self.depth:
                self._owner = None
                self._free.release()


class Fanout:
    """Delivers to the clients of one server.

    Args:
        manager: knows the rooms (a `socketio.Manager`).
        keep_pace: lets the writers of queues run, if much waits in them.
        logger: where to report.

    Attributes:
        outlets: of the clients on WebSocket, by Engine.IO sid.
        direct, queued: deliveries that went to sockets, and into queues.
    """

    def __init__(self, manager: Any, keep_pace: Callable[[], None], logger: logging.Logger) -> None:
        self._manager = manager
        self._keep_pace = keep_pace
        self._logger = logger
        self._lines = LinesPerSecond()
        self._turn = Turn()
        self._gathered: defaultdict[str, list[_Parcel]] = defaultdict(list)
        self._gathered_bytes = 0
        self.outlets: dict[str, Outlet] = {}
        self.direct = 0
        self.queued = 0

    def turn(self) -> Turn:
        """Be the only greenlet that delivers. Waits, except in the hub."""
        self.flush()
        return self._turn

    def deliver(
        self,
        namespace: str,
        rooms: Sequence[Hashable],
        exclude: Collection[Hashable],
        encoded: Sequence[str | bytes],
    ) -> None:
        """Send an encoded Socket.IO packet to the selected local clients."""
        with self.turn():
            members = list(self._members(namespace, rooms, exclude).values())
            parcel = _Parcel(encoded)
            for first in in_slices(range(0, len(members), FEW)):
                self._give(members[first : first + FEW], parcel)

    def gather(
        self,
        namespace: str,
        rooms: Sequence[Hashable],
        exclude: Collection[Hashable],
        encoded: Sequence[str | bytes],
    ) -> None:
        """`deliver` for who calls `flush` before anybody else runs. Gives way when much waits in queues."""
        members = self._members(namespace, rooms, exclude)
        if not members:
            return
        size = sum(map(len, encoded)) * len(members)
        if size > GATHERED_BYTES or not self._may_gather(members):
            self.deliver(namespace, rooms, exclude, encoded)
            self._keep_pace()
            return
        gathered, parcel = self._gathered, _Parcel(encoded)
        for eio_sid in members.values():
            gathered[eio_sid].append(parcel)
        self._gathered_bytes += size
        if self._gathered_bytes > GATHERED_BYTES or len(gathered) > MANY:
            self.flush()

    def _may_gather(self, members: Mapping[str, str]) -> bool:
        if self._turn.depth or len(members) > MANY or (not self._gathered and self._is_watched()):
            return False
        outlets = self.outlets
        for eio_sid in members.values():  # noqa: SIM110 (a generator costs more than the rest)
            if eio_sid not in outlets:
                return False
        return True

    def flush(self) -> None:
        """Deliver what is gathered. Gives way when that takes long, or much waits in queues."""
        if not self._gathered:
            return
        gathered, self._gathered, self._gathered_bytes = self._gathered, defaultdict(list), 0
        with self._turn:
            for eio_sid, parcels in in_slices(gathered.items()):
                try:
                    self._give_some(eio_sid, self.outlets.get(eio_sid), parcels)
                except Exception:
                    # It must not cost the others what is gathered for them.
                    if self._lines.next(monotonic()) is not None:
                        self._logger.exception("events for a client could not be delivered")
        self._keep_pace()

    def _give_some(self, eio_sid: str, outlet: Outlet | None, parcels: Sequence[_Parcel]) -> None:
        direct = 0
        if outlet is not None and outlet.is_free:
            direct = outlet.take_some([parcel.frames for parcel in parcels])
            self.direct += direct
        if direct < len(parcels):
            for parcel in in_slices(parcels[direct:]):
                self.queued += 1
                self._queue(eio_sid, parcel)

    def _members(self, namespace: str, rooms: Sequence[Hashable], exclude: Collection[Hashable]) -> Mapping[str, str]:
        """The Engine.IO sids of the selected local clients by sid; to be copied before anybody else runs."""
        known = self._manager.rooms.get(namespace)
        return members_of(known, rooms, exclude) if known else _NOBODY

    def _give(self, members: Sequence[str], parcel: _Parcel) -> None:
        outlets = _NONE if self._is_watched() else self.outlets
        frames = parcel.frames if outlets else b""
        direct = 0
        for eio_sid in members:
            outlet = outlets.get(eio_sid)
            if outlet is not None and outlet.take(frames):
                direct += 1
            else:
                self._queue(eio_sid, parcel)
        self.direct += direct
        self.queued += len(members) - direct

    def _queue(self, eio_sid: str, parcel: _Parcel) -> None:
        if self._is_gone(eio_sid):
            gevent.spawn(_send_all, self._manager.server, eio_sid, parcel.packets)
        else:
            _send_all(self._manager.server, eio_sid, parcel.packets)

    def deliver_to(self, eio_sid: str, packet: Any) -> None:
        """Send a Socket.IO packet that is for one client only."""
        send = self._manager.server._send_packet
        with self.turn():
            if self._is_gone(eio_sid):
                gevent.spawn(send, eio_sid, packet)
            else:
                send(eio_sid, packet)

    def _is_watched(self) -> bool:
        """Whether somebody wants to see each packet on its way through the server."""
        server = self._manager.server
        return (
            "_send_eio_packet" in vars(server)
            or "send_packet" in vars(server.eio)
            or Socket.send is not _STOCK_SEND
            or server.eio.logger.isEnabledFor(logging.INFO)
        )

    def _is_gone(self, eio_sid: str) -> bool:
        """Whether the client has missed its ping, so that sending to it will close it."""
        socket = self._manager.server.eio.sockets.get(eio_sid)
        if socket is None:
            return False
        last_ping = socket.last_ping
        return bool(socket.closed or (last_ping and time.time() - last_ping > self._manager.server.eio.ping_timeout))
