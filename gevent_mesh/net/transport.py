"""One TCP connection after (or on its way to) the WebSocket upgrade: raw bytes in and out, and three ways to end it.

Rules:

- No frames, no roles, no timers here; whoever owns the transport brings them.
- One greenlet reads and one greenlet writes. `abort`, `close` and `forget` may be called from any greenlet, at any
  time, any number of times; they never wait, and they free whoever waits in `recv` or `send`.
- To a reader every end looks the same (``b""``), to a writer too (`ConnectionError`): how a connection ended is in the
  frames that came before, or it is of no use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
import sys
import termios
from collections.abc import Mapping
from typing import Any

from gevent import socket
from gevent.exceptions import ConcurrentObjectUseError
from gevent.monkey import get_original

from ..protocol.address import format_host_port, plain_host
from ..tls import wrap

__all__ = ["EXHAUSTED", "Transport"]

EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""Errors that say nothing about the other side: this process, or this machine, has no room for another connection."""

#: A read asks for little, as most of what comes is small: a buffer of 256 KiB is a fresh mapping in the kernel each
#: time (24 us a read, measured, against 3 us). After a read that was filled to the brim the next one asks for a lot.
_SMALL_READ_BYTES = 64 * 1024
_LARGE_READ_BYTES = 256 * 1024

#: `close` reads away at most this much, see there.
_MAX_DRAINED_BYTES = 1024 * 1024

_NO_LINGER = struct.pack("ii", 1, 0)

#: What gevent's SSLSocket raises besides OSError: when somebody else has ended it (its SSL object is gone), or when the
#: other side makes the reader write, or the writer read, while another greenlet is at it. TLS 1.3 has no need of that.
_LET_GO = (ValueError, AttributeError, ConcurrentObjectUseError)


class Transport:
    """The bytes of one connection.

    Args:
        sock: a connected gevent socket, which now belongs to the transport.
        is_client: we dialled.

    Attributes:
        is_client: we dialled, so our frames are the masked ones.
        peer_address: ``host:port`` of the other end, for people.
        local_host: our own IP address as the other end sees it.
        speaks_mesh: where we dialled: the other end has answered ``Mesh-Protocol: 1``.
        certificate: what the other end has shown and was checked (as `ssl.SSLSocket.getpeercert` tells it); None
            without TLS, or where it has shown none.
        error: why the last `recv` failed.
        sent_bytes: what our kernel has taken.
    """

    def __init__(self, sock: socket.socket, *, is_client: bool) -> None:
        self.is_client = is_client
        self._socket = sock
        self._unread = b""
        self._read_bytes = _SMALL_READ_BYTES
        self._ended = False
        self.sent_bytes = 0
        self.speaks_mesh = False
        self.certificate: Mapping[str, Any] | None = None
        self.error: OSError | None = None
        self.peer_address, self.local_host = _names(sock)
        with contextlib.suppress(OSError):
            # Frames are coalesced by their writer; Nagle's wait for a full segment would only be on top of that.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __repr__(self) -> str:
        way = "to" if self.is_client else "from"
        return f"<Transport {way} {self.peer_address}{' ended' if self._ended else ''}>"

    @property
    def ended(self) -> bool:
        """True once `abort`, `close` or `forget` was called here. The other side may be gone without that."""
        return self._ended

    def start_tls(self, context: Any, server_hostname: str | None = None) -> None:
        """Do the TLS handshake, before anything else is read or sent.

        Args:
            context: an `ssl.SSLContext` for our side.
            server_hostname: where we dialled, whom the certificate must be for.

        Raises:
            OSError: it failed (see `gevent_mesh.tls.explain`), or the connection is over.
        """
        try:
            self._socket = wrap(self._socket, context, server_hostname=server_hostname)
            self._socket.do_handshake()
            self.certificate = self._socket.getpeercert() or None
        except OSError:
            # Some of them are ValueErrors as well.
            raise
        except _LET_GO as error:
            raise ConnectionAbortedError(f"the connection to {self.peer_address} is over") from error

    def unread(self, data: bytes) -> None:
        """Put back what was read too far: the next `recv` returns it first."""
        self._unread = data + self._unread

    def recv(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes.

        Args:
            max_bytes: never more than this; the default adapts to the traffic, up to 256 KiB.

        Returns:
            What came, or ``b""`` when the connection is over, for whatever reason.
        """
        if self._unread:
            return self._take_unread(max_bytes)
        size = max_bytes or self._read_bytes
        try:
            data: bytes = self._socket.recv(size)
        except OSError as error:
            self.error = error
            return b""
        except _LET_GO:
            return b""
        if max_bytes is None:
            self._read_bytes = _LARGE_READ_BYTES if len(data) >= _SMALL_READ_BYTES else _SMALL_READ_BYTES
        return data

    def send(self, data: bytes) -> None:
        """Hand all of `data` to the kernel, waiting while its buffer is full. One greenlet only.

        Raises:
            ConnectionError: the connection is over; how much has left is unknown.
        """
        sock = self._socket
        try:
            sent = sock.send(data)
            self.sent_bytes += sent
            if sent == len(data):
                return
            with memoryview(data) as view:
                while sent < len(data):
                    more = sock.send(view[sent:])
                    self.sent_bytes += more
                    sent += more
        except ConnectionError:
            raise
        except (OSError, *_LET_GO) as error:
            raise ConnectionAbortedError(f"the connection to {self.peer_address} is over: {error}") from error

    #: By that name libraries look for it.
    sendall = send

    @property
    def is_writable(self) -> bool:
        """Whether the kernel would take something now."""
        with contextlib.suppress(OSError, ValueError):
            # The plain one: gevent's would let others run.
            poller = get_original("select", "poll")()
            poller.register(self._socket.fileno(), select.POLLOUT)
            return any(events & select.POLLOUT for _, events in poller.poll(0))
        return False

    @property
    def delivered_bytes(self) -> int:
        """What the other side's kernel has so far; where ours does not tell, what ours has taken.

        A little less over TLS, whose own bytes wait in the kernel as well.
        """
        with contextlib.suppress(OSError, ValueError):
            queued = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
            return self.sent_bytes - int.from_bytes(queued, sys.byteorder)
        return self.sent_bytes

    def abort(self) -> None:
        """End it at once, with a TCP reset: what is still in the buffers of either side is dropped."""
        if self._ended:
            return
        self._ended = True
        self._unread = b""
        sock = self._socket
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        with contextlib.suppress(OSError):
            # close() alone ends nothing while a forked child holds a copy of the descriptor.
            sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            sock.close()

    def close(self) -> None:
        """End it in good order: what was sent still arrives, then the other side reads the end."""
        if self._ended:
            return
        self._ended = True
        sock = self._socket
        with contextlib.suppress(OSError, *_LET_GO):
            _end_tls(sock)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            _drain(sock)
        with contextlib.suppress(OSError):
            sock.close()

    def forget(self) -> None:
        """In a forked child: give our copy of the descriptor up. The parent's connection does not notice."""
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(OSError):
            # Not close(): that is for connections that are ours. Not shutdown(): that would end the parent's too.
            os.close(self._socket.detach())

    def drop_copy(self) -> None:
        """`forget` for a connection of a thread that the fork left behind: its event loop must not be touched."""
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(OSError, AttributeError):
            # gevent's socket, and its patched os.close, would turn to a loop; this is the plain socket inside of it.
            get_original("os", "close")(self._socket._sock.detach())

    def _take_unread(self, max_bytes: int | None) -> bytes:
        size = max_bytes or len(self._unread)
        data, self._unread = self._unread[:size], self._unread[size:]
        return data


def _end_tls(sock: socket.socket) -> None:
    # Say that this is the end, and do not wait until the other side has said it too.
    sock.setblocking(False)
    if hasattr(sock, "unwrap"):
        sock.unwrap()


def _drain(sock: socket.socket) -> None:
    # Closing a socket that holds unread data makes the kernel send a reset, and a reset may overtake what we sent last.
    sock.setblocking(False)
    drained = 0
    while drained < _MAX_DRAINED_BYTES:
        data = sock.recv(_SMALL_READ_BYTES)
        if not data:
            return
        drained += len(data)


def _names(sock: socket.socket) -> tuple[str, str]:
    try:
        peer, local = sock.getpeername(), sock.getsockname()
        return format_host_port(plain_host(peer[0]), peer[1]), plain_host(local[0])
    except (OSError, IndexError, TypeError):
        # It is over already, or it is not TCP.
        return "?", "?"
