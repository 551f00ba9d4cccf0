"""Where other nodes come in: accepts TCP, reads one HTTP request, upgrades it to WebSocket, and bounds what that costs.

Rules:

- Whoever connects is a *stranger* until the owner of the connection calls `StrangerTicket.admitted`. A stranger has one
  deadline, counted from accept (TLS included), one cap on its HTTP bytes, and a place among a limited number. When the
  places are taken, the **oldest** stranger goes and the newcomer stays: silent sockets cannot keep a node out.
- The HTTP head is read whole, under its cap, before anything parses it. There is one request for each connection, its
  body is never read, and every answer closes.
- Where certificates are asked for, a WebSocket needs one; plain HTTP (probes, scrapers) does not.
- An upgrade with an Origin is refused: it comes from a browser, and no page may talk to a node.
- The handler of gevent-websocket does the upgrade and nothing after it: its WebSocket object never reads or writes.
- pywsgi's logs are off. What strangers do is counted, and told in at most one line a second.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import gevent
from gevent import socket
from gevent.pywsgi import WSGIHandler, WSGIServer
from geventwebsocket.handler import WebSocketHandler

from ..errors import StartError
from ..protocol.address import format_host_port, is_loopback, plain_host
from ..tls import NO_TLS, Tls, explain
from .lines import LinesPerSecond
from .transport import EXHAUSTED, Transport

__all__ = ["Listener", "StrangerLimits", "StrangerTicket", "Strangers", "WSGIApp"]

_log = logging.getLogger(__name__)

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_BACKLOG = 1024
_ACCEPT_AGAIN_SECONDS = 0.1
"""When to try again after there was no descriptor for a new connection."""
_END_OF_HEAD = b"\r\n\r\n"
_MESH_HEADER = "Mesh-Protocol"
_MESH_VERSION = "1"
_TLS_RECORD = 0x16
"""How a connection with TLS begins, and no HTTP does."""
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class StrangerLimits:
    """What somebody may cost us before we know who it is.

    Attributes:
        seconds: from accept to `StrangerTicket.admitted`. Lower cuts honest nodes on a slow network, higher lets silent
            sockets stay longer.
        http_bytes: request line and headers together.
        total: strangers at a time; costs a descriptor and a greenlet each.
        per_address: strangers at a time from one IP address. Loopback addresses are exempt: behind them are many
            processes, or a proxy, and an address does not tell them apart.
    """

    seconds: float = 5.0
    http_bytes: int = 8 * 1024
    total: int = 128
    per_address: int = 16


class Strangers:
    """Who is a stranger at the moment, oldest first. Decides who has to go; does not do it."""

    def __init__(self, limits: StrangerLimits) -> None:
        self._limits = limits
        self._addresses: dict[StrangerTicket, str] = {}
        self._by_address: dict[str, dict[StrangerTicket, None]] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    def __iter__(self) -> Iterator[StrangerTicket]:
        return iter(list(self._addresses))

    def arrive(self, newcomer: StrangerTicket, address: str) -> tuple[StrangerTicket, str] | None:
        """Give a newcomer a place.

        Returns:
            Who has to go for it and why, or None when there is room. That one is no longer counted.
        """
        victim = self._victim(address)
        if victim is not None:
            self.leave(victim[0])
        self._addresses[newcomer] = address
        self._by_address.setdefault(address, {})[newcomer] = None
        return victim

    def leave(self, stranger: StrangerTicket) -> bool:
        """Take a stranger out. Returns False when it is not one (any more)."""
        address = self._addresses.pop(stranger, None)
        if address is None:
            return False
        neighbours = self._by_address[address]
        del neighbours[stranger]
        if not neighbours:
            del self._by_address[address]
        return True

    def _victim(self, address: str) -> tuple[StrangerTicket, str] | None:
        neighbours = self._by_address.get(address, {})
        if len(neighbours) >= self._limits.per_address and not is_loopback(address):
            return next(iter(neighbours)), "too many from one address"
        if len(self._addresses) >= self._limits.total:
            return next(iter(self._addresses)), "too many"
        return None


class StrangerTicket:
    """One connection's place among the strangers.

    Attributes:
        host: the other side's IP address.
        speaks_mesh: it sent ``Mesh-Protocol: 1``, and was answered the same.
    """

    def __init__(self, listener: Listener, transport: Transport, host: str) -> None:
        self.host = host
        self.speaks_mesh = False
        self._listener = listener
        self._transport = transport
        self._deadline = gevent.spawn_later(listener.limits.seconds, self._cut, "too slow")

    def admitted(self) -> None:
        """We know who this is: no deadline any more, and its place is free."""
        self._listener._strangers.leave(self)
        if self._deadline is not gevent.getcurrent():
            self._deadline.kill(block=False)

    def refused(self, reason: str, detail: str = "") -> None:
        """The owner does not want this one: count it, and tell it in the line that all strangers share.

        Args:
            reason: one of a few, for it is counted by that.
            detail: what the log should say besides; may come from the stranger.
        """
        self._listener._tell(reason, self.host, detail)

    def _cut(self, reason: str) -> None:
        self.admitted()
        if not self._transport.ended:
            self._transport.abort()
            self._listener._tell(reason, self.host)


class Listener:
    """A WebSocket server for nodes, and for a little plain HTTP beside it.

    Args:
        host: the address to bind.
        port: 0 for any free one; see `port` after `start`.
        on_websocket: called in the connection's own greenlet after the upgrade. The transport is the callee's until it
            returns; then, or when it raises, the connection is aborted.
        http_app: answers GET and HEAD without an upgrade, under the same deadline. Without it they are 404.
        require_mesh_header: refuse upgrades without ``Mesh-Protocol: 1``.
        limits: see `StrangerLimits`.
        tls: whether it speaks TLS, and how.

    Attributes:
        strangers_cut: how many connections were cut or refused, by reason.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        on_websocket: Callable[[Transport, StrangerTicket], None],
        http_app: WSGIApp | None = None,
        require_mesh_header: bool,
        limits: StrangerLimits = StrangerLimits(),
        tls: Tls = NO_TLS,
    ) -> None:
        self.host = host
        self.port = port
        self.limits = limits
        self.strangers_cut: Counter[str] = Counter()
        self._require_mesh_header = require_mesh_header
        self._on_websocket = on_websocket
        self._http_app = http_app or _not_found
        self._tls = tls
        self._strangers = Strangers(limits)
        self._lines = LinesPerSecond()
        self._server: _Server | None = None

    def start(self) -> None:
        """Bind, listen and accept.

        Raises:
            StartError: the port is taken, not allowed, or not ours; the text says so.
        """
        if self._server is not None:
            return
        sock = _bind(self.host, self.port)
        self.port = sock.getsockname()[1]
        self._server = _Server(sock, self, self._http_app)
        self._server.start()

    def revive(self) -> None:
        """Listen again if accepting has ended: some errors are final ones to gevent."""
        server = self._server
        if server is None or not server.closed:
            return
        self._server = None
        try:
            self.start()
            _log.error("port %s did not accept any more; it does again", self.port)
        except StartError as error:
            self._server = server
            _log.error("port %s does not accept any more: %s", self.port, error)

    def stop(self) -> None:
        """Accept no more and abort the strangers. Connections that were admitted belong to their owner."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for stranger in self._strangers:
            stranger.admitted()
            stranger._transport.abort()

    def forget(self) -> None:
        """In a forked child: give up our copies of all descriptors. The parent goes on listening."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for stranger in self._strangers:
            stranger.admitted()
            stranger._transport.forget()

    def _serve(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """The whole life of one connection, in its own greenlet."""
        transport = Transport(sock, is_client=False)
        ticket = StrangerTicket(self, transport, plain_host(address[0]))
        try:
            self._make_room(ticket)
            if self._start_tls(transport, ticket) and self._upgrade(address, transport, ticket):
                self._on_websocket(transport, ticket)
        except Exception:  # noqa: BLE001  # the top of a greenlet: whatever a handler does, only its connection ends
            self.strangers_cut["crashed"] += 1
            _log.exception("the handler of the connection from %s crashed", transport.peer_address)
        finally:
            ticket.admitted()
            transport.abort()

    def _make_room(self, newcomer: StrangerTicket) -> None:
        victim = self._strangers.arrive(newcomer, newcomer.host)
        if victim is not None:
            victim[0]._cut(victim[1])

    def _start_tls(self, transport: Transport, ticket: StrangerTicket) -> bool:
        context = self._tls.server()
        if context is None:
            return True
        try:
            transport.start_tls(context)
        except OSError as error:
            # In good order: the other side is to read why.
            transport.close()
            problem = explain(error)
            if problem:
                self._tell("TLS failed", ticket.host, problem)
            return False
        return True

    def _upgrade(self, address: tuple[Any, ...], transport: Transport, ticket: StrangerTicket) -> bool:
        """Read and answer the request. True: it is a WebSocket now, and on_websocket's turn."""
        head = self._read_head(transport, ticket)
        if head is None or self._server is None:
            return False
        handler = _Handler(transport, address, self._server, io.BytesIO(head))
        handler.require_mesh_header = self._require_mesh_header
        handler.lacks_certificate = self._tls.asks_for_certificates and transport.certificate is None
        handler.handle()
        if handler.refused:
            self._tell(handler.refused, ticket.host)
        if not handler.upgraded:
            transport.close()
            return False
        ticket.speaks_mesh = handler.speaks_mesh
        return True

    def _read_head(self, transport: Transport, ticket: StrangerTicket) -> bytes | None:
        received = b""
        while _END_OF_HEAD not in received:
            if len(received) >= self.limits.http_bytes:
                transport.abort()
                self._tell("HTTP head too large", ticket.host)
                return None
            data = transport.recv(self.limits.http_bytes - len(received))
            if not data:
                # Port checks connect and leave; nothing to tell.
                return None
            received += data
            if received[0] == _TLS_RECORD and not self._tls.listens:
                self._refuse_tls(transport, ticket)
                return None
        head, _, behind = received.partition(_END_OF_HEAD)
        transport.unread(behind)
        return head + _END_OF_HEAD

    def _refuse_tls(self, transport: Transport, ticket: StrangerTicket) -> None:
        with contextlib.suppress(ConnectionError):
            # Something that is not TLS tells the other side more than an end does.
            transport.send(_BAD_REQUEST)
        transport.close()
        self._tell("it speaks TLS, and this port does not", ticket.host)

    def _tell(self, reason: str, host: str, detail: str = "") -> None:
        self.strangers_cut[reason] += 1
        more = self._lines.next(time.monotonic())
        if more is not None:
            why = f"{reason}: {detail!r}" if detail else reason
            _log.warning("port %s: cut a connection from %s: %s%s", self.port, host, why, more)


class _Server(WSGIServer):  # type: ignore[misc]  # gevent ships no types
    """pywsgi's accept loop; a connection goes to `Listener._serve` and reaches pywsgi's handler from there."""

    belongs_to_a_node = True
    """That this server starts does not mean that an application begins to serve (see `gevent_mesh.startup`)."""

    def __init__(self, sock: socket.socket, listener: Listener, application: WSGIApp) -> None:
        # SERVER_NAME is given because pywsgi would look our address up in the DNS to fill it.
        environ = {"SERVER_NAME": listener.host or "localhost"}
        super().__init__(sock, application, log=None, error_log=None, handler_class=_Handler, environ=environ)
        self._listener = listener

    def handle(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        self._listener._serve(sock, address)

    def do_read(self) -> tuple[socket.socket, tuple[Any, ...]] | None:
        try:
            found: tuple[socket.socket, tuple[Any, ...]] | None = super().do_read()
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            # gevent would print a traceback for each try, and wait longer each time. Who knocks waits in the backlog.
            self._listener._tell(f"cannot accept: {error.strerror}", "those who wait")
            self.stop_accepting()
            self._timer = self.loop.timer(_ACCEPT_AGAIN_SECONDS)
            self._timer.start(self._start_accepting_if_started)
            return None
        return found


class _Handler(WebSocketHandler):  # type: ignore[misc]  # gevent-websocket ships no types
    """One HTTP request, its head already read. Never reads the socket; answers and stops, with the socket open.

    Attributes:
        upgraded: the answer was 101.
        speaks_mesh: the request said so.
        refused: why the request was not served, or "".
    """

    # gevent-websocket logs what strangers send, line by line and without a limit. We tell it ourselves.
    logger = logging.Logger(f"{__name__}.silent", logging.CRITICAL + 1)

    def __init__(self, transport: Transport, address: tuple[Any, ...], server: _Server, rfile: io.BytesIO) -> None:
        # All that is asked of the socket is `sendall`.
        # A given rfile also keeps pywsgi from sock.makefile(), which would hold the socket open behind an abort().
        super().__init__(transport, address, server, rfile)
        self.require_mesh_header = True
        self.lacks_certificate = False
        self.upgraded = False
        self.speaks_mesh = False
        self.refused = ""

    def handle(self) -> None:
        # pywsgi's own loop would wait for more requests, and close the socket behind our back.
        try:
            answer = self.handle_one_request()
            if isinstance(answer, tuple):
                self.socket.sendall(answer[1])
        except OSError:
            self.upgraded = False

    def run_application(self) -> None:
        problem = self._problem()
        if problem is not None:
            status, self.refused = problem
            self.result = [f"{self.refused}\n".encode()]
            self.start_response(status, [("Content-Type", "text/plain"), *_hints(status)])
            self.process_result()
        elif _asks_for_websocket(self.environ):
            super().run_application()
        else:
            # Straight to pywsgi: WebSocketHandler would look for an upgrade once more.
            WSGIHandler.run_application(self)

    def run_websocket(self) -> None:
        # __del__ of the WebSocket object sends a CLOSE frame if it is not closed: into the middle of our frames.
        self.websocket.closed = True
        self.environ["wsgi.websocket"] = None
        self.websocket: Any = None
        self.upgraded = True

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if status.startswith("101"):
            extra = [(_MESH_HEADER, _MESH_VERSION)] if self.speaks_mesh else []
            return super().start_response(status, [*headers, *extra], exc_info)
        headers = [header for header in headers if header[0].lower() != "connection"]
        return super().start_response(status, [*headers, ("Connection", "close")], exc_info)

    def log_request(self) -> None:
        """Nothing: see the module's rules."""

    def log_error(self, msg: str, *args: object) -> None:
        """Nothing: see the module's rules."""

    def _handle_client_error(self, _ex: Exception) -> tuple[str, bytes]:
        # pywsgi prints a traceback for the more unusual kinds of garbage.
        self.refused = "malformed HTTP"
        return "400", _BAD_REQUEST

    def handle_error(self, t: type[BaseException], v: BaseException, tb: Any) -> None:
        if isinstance(v, OSError):
            # The other side has gone meanwhile. pywsgi knows that by some error numbers only, none of them of TLS.
            return
        self.refused = "crashed"
        _log.error("answering %r crashed", self.requestline, exc_info=(t, v, tb))
        self._send_error_response_if_possible(500)

    def _problem(self) -> tuple[str, str] | None:
        environ = self.environ
        if _asks_for_websocket(environ):
            self.speaks_mesh = environ.get("HTTP_MESH_PROTOCOL") == _MESH_VERSION
            if self.lacks_certificate:
                return "403 Forbidden", "no client certificate"
            return _upgrade_problem(environ, must_speak_mesh=self.require_mesh_header)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return "405 Method Not Allowed", "only GET is served here"
        return None


def _asks_for_websocket(environ: dict[str, Any]) -> bool:
    upgrade: str = environ.get("HTTP_UPGRADE", "")
    return upgrade.lower() == "websocket"


def _upgrade_problem(environ: dict[str, Any], *, must_speak_mesh: bool) -> tuple[str, str] | None:
    """Why a request must not become a WebSocket: an HTTP status and a reason that holds nothing the stranger sent."""
    if "HTTP_ORIGIN" in environ:
        return "403 Forbidden", "browsers are not served here (Origin)"
    if environ["PATH_INFO"] != "/" or environ["QUERY_STRING"]:
        return "404 Not Found", "the only path is /"
    if not _is_handshake(environ):
        return "400 Bad Request", "not a WebSocket handshake"
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
        return "426 Upgrade Required", "not WebSocket version 13"
    if must_speak_mesh and environ.get("HTTP_MESH_PROTOCOL") != _MESH_VERSION:
        return "426 Upgrade Required", "no 'Mesh-Protocol: 1'"
    return None


def _is_handshake(environ: dict[str, Any]) -> bool:
    """RFC 6455, section 4.2.1, items 1 to 5 (3 was asked before); and no body, which would be read as frames."""
    tokens = [token.strip().lower() for token in environ.get("HTTP_CONNECTION", "").split(",")]
    return (
        environ["REQUEST_METHOD"] == "GET"
        and environ["SERVER_PROTOCOL"] == "HTTP/1.1"
        and "upgrade" in tokens
        and "HTTP_HOST" in environ
        and _is_key(environ.get("HTTP_SEC_WEBSOCKET_KEY", ""))
        and "HTTP_TRANSFER_ENCODING" not in environ
        and environ.get("CONTENT_LENGTH", "0") == "0"
    )


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def _hints(status: str) -> list[tuple[str, str]]:
    # RFC 6455, section 4.2.2: what a client of another version should try.
    return [("Sec-WebSocket-Version", "13")] if status.startswith("426") else []


def _not_found(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = b"" if environ["REQUEST_METHOD"] == "HEAD" else b"nothing here\n"
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def _bind(host: str, port: int) -> socket.socket:
    where = format_host_port(host, port)
    if not 0 <= port <= 65535:
        # getaddrinfo takes such a number modulo 65536.
        raise StartError(f"cannot listen on {where}: a port is a number from 0 to 65535")
    try:
        family, kind, proto, _, address = _resolve(host, port)
        sock = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise StartError(f"cannot listen on {where}: {_bind_problem(error)}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise StartError(f"cannot listen on {where}: {_bind_problem(error)}") from None
    return sock


def _resolve(host: str, port: int) -> tuple[Any, ...]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # A name with both kinds of addresses (localhost) means the IPv4 one: what others are told to dial.
    return min(found, key=lambda entry: entry[0] != socket.AF_INET)


def _bind_problem(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "the host name is not known here"
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return "the port is already in use"
    if code == errno.EACCES:
        return "no permission (ports below 1024 need a privilege)"
    if code == errno.EADDRNOTAVAIL:
        return "that is not an address of this machine"
    return getattr(error, "strerror", None) or str(error)
