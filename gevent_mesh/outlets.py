"""Outlets: the sockets of this node's WebSocket clients, which an event can be written to at once.

python-engineio puts every packet into the client's queue and wakes a greenlet that makes a frame of it and writes that:
with many clients most of the time goes there. An outlet takes a frame that was made once for all, and gives it to the
kernel, when that is the same as what the queue would do.

Rules:

- The order of a client's packets holds: an outlet takes a frame only when nothing is before it, in the queue, half
  written, or in the hands of the greenlet that empties the queue. Else the packet goes into the queue.
- All writes to the socket go through the outlet, one at a time, so that no PONG lands inside a half-written frame.
- What the kernel does not take of a frame is kept, and written before anything else. When that fails nothing more is
  taken: behind half a frame there is nothing that the client could read.
- Of several frames the one that is half written is kept, and those behind it go into the queue, which has a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engineio import packet as eio_packet
from gevent import socket
from gevent.lock import RLock

__all__ = ["NOTHING", "Outlet"]


class Outlet:
    """The way to one client.

    Args:
        client: python-engineio's socket.
        sock: the connection.

    Attributes:
        in_hand: packets that were taken out of the queue and are not written.
    """

    __slots__ = ("_is_busy", "_is_empty", "_queue", "_rest", "_send", "_sendall", "_writing", "in_hand")

    def __init__(self, client: Any, sock: socket.socket) -> None:
        self._queue = client.queue
        self._is_empty: Callable[[], bool] = client.queue.empty
        self.in_hand = 0
        self._is_busy = False
        self._rest = memoryview(b"")
        self._sendall = sock.sendall
        # Does not wait, as the sockets inside of gevent's never do.
        self._send: Callable[[bytes], int] = sock._sock.send
        self._writing = RLock()

    @property
    def is_free(self) -> bool:
        """Whether nothing is before what would be written now."""
        return not (self._is_busy or self.in_hand) and self._is_empty()

    def take(self, frame: bytes) -> bool:
        """Write a frame at once. Never waits.

        Returns:
            False if the packet has to go through the queue.
        """
        if self._is_busy or self.in_hand or not self._is_empty():
            return False
        try:
            written = self._send(frame)
        except OSError:
            # No room for a single byte, or the connection is gone: whoever empties the queue finds out which.
            return False
        if written < len(frame):
            self._is_busy = True
            self._rest = memoryview(frame)[written:]
            self._queue.put(_WAKE)
        return True

    def take_some(self, frames: Sequence[bytes]) -> int:
        """Write several frames at once, as far as the socket takes them; the last one may be half written.

        Returns:
            How many that were: the packets of the others have to go through the queue.
        """
        if not self.take(frames[0] if len(frames) == 1 else b"".join(frames)):
            return 0
        taken, unwritten = len(frames), len(self._rest)
        while unwritten and unwritten >= len(frames[taken - 1]):
            taken -= 1
            unwritten -= len(frames[taken])
        if len(frames) > 1:
            # A copy: the frames that were joined for this are not to be kept for the sake of one.
            self._rest = memoryview(bytes(self._rest[:unwritten]))
        return taken

    def write(self, data: bytes) -> None:
        """Write all of it, behind what is half written. Waits."""
        with self._writing:
            self._is_busy = True
            rest, self._rest = self._rest, memoryview(b"")
            if rest:
                self._sendall(rest)
            self._sendall(data)
            # Not when it fails, or is killed.
            self._is_busy = False


NOTHING = ""
"""What the packet is encoded as that stands in the queue for something half written. No other packet is empty."""


class _Wake(eio_packet.Packet):  # type: ignore[misc]  # python-engineio has no types
    """Has whoever empties the queue write what is half written."""

    def encode(self, b64: bool = False) -> Any:
        # A polling request that has come late may take it out; to clients Engine.IO's "noop" means nothing.
        return super().encode(b64) if b64 else NOTHING


_WAKE = _Wake(eio_packet.NOOP)
