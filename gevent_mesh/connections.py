"""The WebSockets of this node's clients, between python-engineio and what carries them.

That is gevent-websocket where the server has it, and simple-websocket elsewhere. python-engineio is given connections
of ours in place of its own drivers, and so each one gets its limits and its outlet.

Rules:

- A connection is bounded (see `websocket`), and ends with its session (see `limits`).
- It has an outlet from when it is the one that its session writes to. A session that has two of these has none.
- A client whose packets somebody counts or changes (python-socketio's admin UI) has no outlet, nor has one on TLS, nor
  one that is found to be gone only by sending to it (``monitor_clients=False``).
- What is not known of python-engineio stays as it is.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from engineio import socket as eio_socket
from engineio.async_drivers._websocket_wsgi import SimpleWebSocketWSGI
from engineio.async_drivers.gevent import WebSocketWSGI
from engineio.socket import Socket
from gevent import selectors, socket
from gevent.event import Event
from geventwebsocket.websocket import WebSocket

from . import startup, tasks
from .errors import WebSocketError
from .limits import ENDING_SECONDS, ClientLimits
from .net.pause import Turns
from .net.transport import Transport
from .outlets import NOTHING, Outlet
from .stock import stock
from .websocket import BoundedWebSocket, has_no_body

__all__ = ["install"]

_EXIT = Turns()
"""Through which all pass whose connections have ended: ten thousand of them at once would stop everything else."""
_STOCK_HANDLER = stock(Socket._websocket_handler, eio_socket)
_TOO_BIG = 1009


def install(server: Any, limits: ClientLimits, outlets: dict[str, Outlet], logger: logging.Logger) -> None:
    """Have the clients of a `socketio.Server` use connections of ours.

    Args:
        limits: those of its clients.
        outlets: where each one enters its outlet, by Engine.IO sid.
        logger: where to report.
    """
    eio = server.eio
    drivers = getattr(eio, "_async", None)
    if not isinstance(drivers, dict) or not {"queue", "websocket"} <= drivers.keys():
        logger.warning("this python-engineio is not known: clients have no limits, and events go through its queues")
        return
    limits.watch(server)
    tasks.install(eio)

    def websocket(handler: Any, _eio: Any) -> Callable[..., Any]:
        def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            kind = _Stock if isinstance(environ.get("wsgi.websocket"), WebSocket) else _Simple
            if kind is _Simple and not startup.is_served():
                # It would be upgraded, and then nobody would serve it.
                raise RuntimeError("no gevent server runs in this process: see the message of gevent_mesh in the log")
            return kind(limits, outlets, handler, eio)(environ, start_response)

        return serve

    # A copy: the original is shared by all servers of the process.
    eio._async = {**eio._async, "websocket": websocket}


class _Connection:
    """One connection of a session; it may have several while it is upgraded."""

    def __init__(self, limits: ClientLimits, outlets: dict[str, Outlet], handler: Any, eio: Any) -> None:
        self._limits = limits
        self._outlets = outlets
        self._handler = handler
        self._session = handler.__self__
        self._eio = eio
        # After polling there is a probe first, and then the word to upgrade: on this connection, or on another one.
        self._waits_until_used = 2 if self._session.connected else 0
        self._transport: Transport | None = None
        self._outlet: Outlet | None = None
        self._ending: gevent.Greenlet | None = None

    def end_soon(self) -> None:
        """The session has ended: so does this, in good order or soon."""
        if self._ending is None:
            self._ending = gevent.spawn_later(ENDING_SECONDS, self.abort)

    def abort(self) -> None:
        """End it at once, and free whoever reads or writes."""
        if self._transport is not None:
            self._transport.abort()

    def _make_outlet(self, sock: Any) -> Outlet | None:
        """An outlet, where all that goes to the client may pass it."""
        is_stock = _STOCK_HANDLER is not None and getattr(self._handler, "__func__", None) is _STOCK_HANDLER
        # Its socket may have another way to write: that of TLS.
        if is_stock and type(sock) is socket.socket and self._limits.allows_outlets:
            self._outlet = Outlet(self._session, sock)
        return self._outlet

    def send(self, message: str | bytes) -> None:
        """Send a packet, which nothing overtakes from now on."""
        outlet = self._outlet
        if outlet is None:
            super().send(message)  # type: ignore[misc]  # of the driver that this is mixed into
            return
        outlet.in_hand += 1
        try:
            if message == NOTHING:
                outlet.write(b"")
            else:
                super().send(message)  # type: ignore[misc]
        finally:
            outlet.in_hand -= 1

    def wait(self) -> Any:
        """Wait for a message; None when there will be none."""
        self._waits_until_used -= 1
        if self._waits_until_used == -1:
            self._is_used()
        message = super().wait()  # type: ignore[misc]
        if message is None:
            _EXIT.take_turn()
        return message

    def _is_used(self) -> None:
        """The session writes to this connection."""
        sid = self._session.sid
        if self._outlets.pop(sid, None) is None and self._outlet is not None:
            self._outlets[sid] = self._outlet

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """While the connection is open."""
        connections, sid = self._session.queue.connections, self._session.sid
        connections.append(self)
        try:
            yield
        finally:
            if self._outlets.get(sid) is self._outlet:
                self._outlets.pop(sid, None)
            connections.remove(self)
            if self._ending is not None:
                self._ending.kill(block=False)
                self._ending = None


class _Stock(_Connection, WebSocketWSGI):  # type: ignore[misc]  # python-engineio has no types
    """On gevent-websocket."""

    def __init__(self, limits: ClientLimits, outlets: dict[str, Outlet], handler: Any, eio: Any) -> None:
        _Connection.__init__(self, limits, outlets, handler, eio)
        WebSocketWSGI.__init__(self, handler, eio)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """The whole life of the connection."""
        websocket = self._bounded(environ["wsgi.websocket"], environ)
        outlet = self._make_outlet(websocket.handler.socket)
        if outlet is not None:
            websocket.raw_write = outlet.write
        with self._open():
            return WebSocketWSGI.__call__(self, environ, start_response)

    def wait(self) -> Any:
        """Wait for a message; None when there will be none."""
        message = super().wait()
        if message is None and isinstance(self._sock, BoundedWebSocket) and self._sock.refused:
            self._limits.refused(self._session, self._sock.refused)
        return message

    def _bounded(self, websocket: WebSocket, environ: dict[str, Any]) -> WebSocket:
        if not self._limits.bounded_reader:
            self._transport = Transport(websocket.handler.socket, is_client=False)
            return websocket
        if not isinstance(websocket, BoundedWebSocket):
            websocket = BoundedWebSocket(websocket, self._eio.max_http_buffer_size)
            websocket.handler.websocket = environ["wsgi.websocket"] = websocket
        websocket.max_message_bytes = self._eio.max_http_buffer_size
        self._transport = websocket.transport
        return websocket


class _Simple(_Connection, SimpleWebSocketWSGI):  # type: ignore[misc]  # python-engineio has no types
    """On simple-websocket."""

    ws: Any

    def __init__(self, limits: ClientLimits, outlets: dict[str, Outlet], handler: Any, eio: Any) -> None:
        _Connection.__init__(self, limits, outlets, handler, eio)
        options: dict[str, Any] = {"max_message_size": eio.max_http_buffer_size} if limits.bounded_reader else {}
        SimpleWebSocketWSGI.__init__(
            self,
            self._serve,
            eio,
            thread_class=_Thread,
            event_class=Event,
            selector_class=selectors.DefaultSelector,
            **options,
        )

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """The whole life of the connection."""
        try:
            return SimpleWebSocketWSGI.__call__(self, environ, start_response)
        finally:
            # Both lead back here, and such circles are left to the garbage collector.
            self.app = self.ws = None

    def close(self) -> None:
        """Say that nothing more will come, unless the connection is over."""
        # Who serves it may have been killed, and the writer comes later.
        if self.ws is not None:
            with contextlib.suppress(OSError):
                super().close()

    def _serve(self, _websocket: Any) -> Any:
        """The life of the connection, from when it is upgraded."""
        sock = self.ws.sock
        # Of the request: nothing is read through it any more, and it keeps a buffer.
        body = self.ws.environ["wsgi.input"]
        has_no_body(body)
        rfile = getattr(body, "rfile", None)
        if rfile is not None:
            rfile.close()
        self._transport = Transport(sock, is_client=False)
        outlet = self._make_outlet(sock)
        self.ws.sock = _Socket(sock, sock.sendall if outlet is None else outlet.write)
        with self._open():
            return self._handler(self)

    def wait(self) -> Any:
        """Wait for a message; None when there will be none."""
        message = super().wait()
        limit = self.ws.max_message_size
        if message is None and limit and self.ws.incoming_message_len > limit:
            too_large = WebSocketError(_TOO_BIG, f"a message of more than {limit} bytes")
            self._limits.refused(self._session, too_large)
        return message


class _Socket:
    """A socket for simple-websocket, which takes it for granted that `send` sends everything.

    And that to close is to end the connection: pywsgi holds another copy, and would take what still comes for requests.
    """

    def __init__(self, sock: socket.socket, write: Callable[[bytes], None]) -> None:
        self._sock = sock
        self.send = write

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Thread(tasks.Task):
    """A greenlet that is made like a thread."""

    def __init__(self, target: Callable[[], None]) -> None:
        super().__init__(target)
