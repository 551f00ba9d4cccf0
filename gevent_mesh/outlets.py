"""Outlets: the sockets of this node's WebSocket clients, which an event can be written to at once.

python-engineio puts every packet into the client's queue and wakes a greenlet that makes a frame of it and writes that:
with many clients most of the time goes there. An outlet takes a frame that was made once for all, and gives it to the
kernel, when that is the same as what the queue would do.

Rules:

- The order of a client's packets holds: an outlet takes a frame only when nothing is before it, in the queue, half
  written, or in the hands of the greenlet that empties the queue. Else the packet goes into the queue.
- All writes to the socket go through the outlet, one at a time, so that no PONG lands inside a half-written frame.
- What the kernel does not take of a frame is kept, and written before anything else.
- A client whose packets somebody counts or changes (python-socketio's admin UI) has no outlet, nor has one on TLS, nor
  one that is found to be gone only by sending to it (``monitor_clients=False``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from engineio import packet as eio_packet
from engineio.async_drivers import gevent as driver
from engineio.async_drivers._websocket_wsgi import SimpleWebSocketWSGI
from engineio.socket import Socket
from gevent import selectors, socket
from gevent.event import Event
from gevent.lock import RLock

__all__ = ["Outlet", "install"]

logger = logging.getLogger(__name__)

_KNOWN = ("queue", "sid", "upgraded")
"""What is asked of python-engineio's sockets."""

_STOCK_HANDLER = Socket._websocket_handler


class Outlet:
    """The way to one client.

    Args:
        client: python-engineio's socket.
        sock: the connection.
    """

    __slots__ = ("_client", "_is_busy", "_is_empty", "_is_open", "_rest", "_send", "_sendall", "_writing")

    def __init__(self, client: Any, sock: socket.socket) -> None:
        self._client = client
        self._is_empty: Callable[[], bool] = client.queue.empty
        self._is_open = False
        self._is_busy = False
        self._rest = b""
        self._sendall = sock.sendall
        # Does not wait, as the sockets inside of gevent's never do.
        self._send: Callable[[bytes], int] = sock._sock.send
        self._writing = RLock()

    def take(self, frame: bytes) -> bool:
        """Write a frame at once. Never waits.

        Returns:
            False if the packet has to go through the queue.
        """
        if self._is_busy or not self._is_empty() or not (self._is_open or self._opens()):
            return False
        try:
            written = self._send(frame)
        except OSError:
            # No room for a single byte, or the connection is gone: whoever empties the queue finds out which.
            return False
        if written < len(frame):
            self._is_busy = True
            self._rest = frame[written:]
            self._client.queue.put(_WAKE)
        return True

    def _opens(self) -> bool:
        """Whether the client is over with polling."""
        self._is_open = self._client.upgraded
        return self._is_open

    def write(self, data: bytes) -> None:
        """Write all of it, behind what is half written. Waits."""
        with self._writing:
            self._is_busy = True
            rest, self._rest = self._rest, b""
            try:
                self._sendall(rest + data)
            finally:
                self._is_busy = False


_WAKE = eio_packet.Packet(eio_packet.NOOP)
"""Has whoever empties the queue write what is half written. To clients it means nothing (Engine.IO's "noop")."""


class _WholeWrites:
    """A socket for simple-websocket, which takes it for granted that `send` sends everything."""

    def __init__(self, sock: socket.socket, outlet: Outlet) -> None:
        self._sock = sock
        self.send = outlet.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Thread(gevent.Greenlet):  # type: ignore[misc]  # gevent has no types
    """A greenlet that is made like a thread."""

    def __init__(self, target: Callable[[], None]) -> None:
        super().__init__(target)


class _WebSocket:
    """What python-engineio takes for its WebSocket driver: the real one, with an outlet beside it.

    The real one is gevent-websocket's where the server has it, and simple-websocket's elsewhere.
    """

    def __init__(self, outlets: dict[str, Outlet], handler: Callable[[Any], Any], server: Any) -> None:
        self._outlets = outlets
        self._handler = handler
        self._server = server

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if "wsgi.websocket" in environ:
            return driver.WebSocketWSGI(self._handle, self._server)(environ, start_response)
        options = {"thread_class": _Thread, "event_class": Event, "selector_class": selectors.DefaultSelector}
        return SimpleWebSocketWSGI(self._handle, self._server, **options)(environ, start_response)

    def _handle(self, websocket: Any) -> Any:
        """The life of one connection."""
        is_stock = getattr(self._handler, "__func__", None) is _STOCK_HANDLER
        client: Any = self._handler.__self__ if is_stock else None  # type: ignore[attr-defined]  # a bound method
        outlet = _outlet_of(client, websocket)
        if outlet is None:
            return self._handler(websocket)
        sid = client.sid
        self._outlets[sid] = outlet
        try:
            return self._handler(websocket)
        finally:
            del self._outlets[sid]


def _outlet_of(client: Any, websocket: Any) -> Outlet | None:
    """Have a connection write through an outlet, if that is possible."""
    if not all(hasattr(client, name) for name in _KNOWN):
        return None
    stock = getattr(websocket, "_sock", None)
    if stock is not None:
        return _with_gevent_websocket(client, stock)
    return _with_simple_websocket(client, websocket.ws)


def _with_gevent_websocket(client: Any, stock: Any) -> Outlet | None:
    sock = getattr(getattr(stock, "handler", None), "socket", None)
    if type(sock) is not socket.socket:
        return None
    outlet = Outlet(client, sock)
    stock.raw_write = outlet.write
    return outlet


def _with_simple_websocket(client: Any, stock: Any) -> Outlet | None:
    if type(stock.sock) is not socket.socket:
        return None
    outlet = Outlet(client, stock.sock)
    stock.sock = _WholeWrites(stock.sock, outlet)
    return outlet


def install(server: Any, outlets: dict[str, Outlet]) -> None:
    """Have the WebSockets of a `socketio.Server` enter their outlets here, by Engine.IO sid, while they are open."""
    eio = server.eio
    parts = getattr(eio, "_async", None)
    if not isinstance(parts, dict) or "websocket" not in parts:
        logger.warning("this python-engineio is not known: events go through its queues, which is slower")
        return
    if not eio.start_service_task:
        return
    # A copy: all servers of a process share one.
    eio._async = {**parts, "websocket": partial(_WebSocket, outlets)}
