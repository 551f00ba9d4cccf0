"""Opening a connection to another node or to a discovery server, up to the answered WebSocket upgrade.

Rules:

- One deadline for everything: looking the name up, TCP, TLS, the request, the answer.
- Whatever goes wrong is a `DialError` that says with whom and why; the socket is gone by then.
- wsproto does the handshake and never sees a frame: what comes behind the response's head is kept for the first `recv`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType

import gevent
from gevent import socket
from gevent.lock import BoundedSemaphore
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Event, RejectConnection, Request
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from ..errors import DialError, ExhaustedError
from ..protocol.address import Address, parse_address
from ..tls import NO_TLS, Tls, explain
from .transport import EXHAUSTED, Transport

__all__ = ["Turns", "dial"]

_MAX_RESPONSE_BYTES = 8 * 1024
_END_OF_HEAD = b"\r\n\r\n"
_MESH_HEADER = b"mesh-protocol"
_MESH_VERSION = b"1"

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_NO_TURNS = nullcontext()


class Turns:
    """So many at a time, each for a short while.

    Args:
        count: how many at a time.
        seconds: after this long the next one may begin, whether the one before is done or not: a peer that never
            answers costs no CPU, and must not keep others waiting.
    """

    def __init__(self, count: int, seconds: float) -> None:
        self._free = BoundedSemaphore(count)
        self._seconds = seconds

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and hold it."""
        self._free.acquire()
        end = gevent.spawn_later(self._seconds, self._free.release)
        try:
            yield
        finally:
            if not end.ready():
                end.kill(block=False)
                self._free.release()


def dial(
    address: str,
    *,
    timeout_seconds: float = 5.0,
    headers: Mapping[str, str] = _NO_HEADERS,
    require_mesh: bool = True,
    tls: Tls = NO_TLS,
    is_peer: bool = False,
    turns: AbstractContextManager[object] = _NO_TURNS,
) -> Transport:
    """Open a WebSocket connection.

    Args:
        address: ``ws://host:port`` or ``wss://host:port``.
        timeout_seconds: for all of it.
        headers: sent along in the request.
        require_mesh: refuse whoever upgrades without speaking our protocol (say, the Node package); else the
            transport tells (`Transport.speaks_mesh`).
        tls: what ``wss://`` is dialled with.
        is_peer: another node lives there, not discovery: what `tls` says of nodes holds.
        turns: entered for a TLS handshake.

    Raises:
        DialError: it did not work.
    """
    target = _target(address)
    name = _peer_name(target, tls) if is_peer else target.host
    timeout = gevent.Timeout(timeout_seconds)
    timeout.start()
    try:
        transport = Transport(_connect(target), is_client=True)
        with _aborted_on_failure(transport):
            if target.secure:
                with turns:
                    _start_tls(transport, target, tls, name)
            _upgrade(transport, target, headers, require_mesh)
        return transport
    except gevent.Timeout as expired:
        if expired is not timeout:
            raise
        raise DialError(f"{target}: no WebSocket connection within {timeout_seconds:g} s") from None
    finally:
        timeout.close()


def _target(address: str) -> Address:
    try:
        return parse_address(address)
    except ValueError as error:
        raise DialError(str(error)) from error


def _peer_name(target: Address, tls: Tls) -> str:
    problem = tls.peer_problem(target.secure)
    if problem:
        raise DialError(f"{target}: {problem}")
    return tls.peer_name(target.host)


@contextmanager
def _aborted_on_failure(transport: Transport) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # Also when a timeout or a kill comes from outside: nobody else knows this socket.
        transport.abort()
        raise


def _connect(target: Address) -> socket.socket:
    try:
        sock = socket.create_connection((target.host, target.port))
    except (OSError, UnicodeError) as error:
        kind = ExhaustedError if getattr(error, "errno", None) in EXHAUSTED else DialError
        raise kind(f"{target}: {_reason(error)}") from error
    try:
        # Dialling a free local port from the range of outgoing ports can connect a socket to itself.
        to_itself = sock.getsockname() == sock.getpeername()
    except OSError as error:
        sock.close()
        raise DialError(f"{target}: {_reason(error)}") from error
    if to_itself:
        sock.close()
        raise DialError(f"{target}: nobody listens there")
    return sock


def _start_tls(transport: Transport, target: Address, tls: Tls, name: str) -> None:
    try:
        transport.start_tls(tls.client(), name)
    except (OSError, UnicodeError) as error:
        problem = explain(error) if isinstance(error, OSError) else ""
        raise DialError(f"{target}: {problem or f'the TLS handshake was cut: {_reason(error)}'}") from error


def _upgrade(transport: Transport, target: Address, headers: Mapping[str, str], require_mesh: bool) -> None:
    handshake = WSConnection(ConnectionType.CLIENT)
    sent = [(_MESH_HEADER, _MESH_VERSION)]
    sent += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    try:
        transport.send(handshake.send(Request(host=target.netloc, target="/", extra_headers=sent)))
    except (ConnectionError, LocalProtocolError, UnicodeError) as error:
        raise DialError(f"{target}: {_reason(error)}") from error
    head = _read_head(transport, target)
    transport.speaks_mesh = _check(_answer(handshake, head, target), target, require_mesh)


def _read_head(transport: Transport, target: Address) -> bytes:
    received = b""
    while _END_OF_HEAD not in received:
        if len(received) >= _MAX_RESPONSE_BYTES:
            raise DialError(f"{target}: the answer to the upgrade has more than {_MAX_RESPONSE_BYTES} bytes")
        data = transport.recv(_MAX_RESPONSE_BYTES - len(received))
        if not data:
            raise DialError(f"{target}: {_why_closed(transport, target)}")
        received += data
    head, _, behind = received.partition(_END_OF_HEAD)
    transport.unread(behind)
    return head + _END_OF_HEAD


def _why_closed(transport: Transport, target: Address) -> str:
    # In TLS 1.3 a client has finished its handshake before the server has looked at its certificate.
    closed = "the connection was closed before the upgrade was answered"
    return explain(transport.error) or (closed if target.secure else f"{closed}; if TLS is spoken there, write wss://")


def _answer(handshake: WSConnection, head: bytes, target: Address) -> Event:
    try:
        handshake.receive_data(head)
        return next(iter(handshake.events()))
    except RemoteProtocolError as error:
        raise DialError(f"{target}: not a WebSocket answer: {error}") from error
    except (StopIteration, LocalProtocolError, ValueError) as error:
        raise DialError(f"{target}: not a WebSocket answer") from error


def _check(answer: Event, target: Address, require_mesh: bool) -> bool:
    """Whether it speaks our protocol, if it is a WebSocket at all."""
    if isinstance(answer, RejectConnection):
        hint = "; it may want a client certificate" if target.secure and answer.status_code == 403 else ""
        raise DialError(f"{target}: the upgrade was refused with HTTP status {answer.status_code}{hint}")
    if not isinstance(answer, AcceptConnection):
        raise DialError(f"{target}: not a WebSocket answer")
    speaks_mesh = (_MESH_HEADER, _MESH_VERSION) in answer.extra_headers
    if require_mesh and not speaks_mesh:
        raise DialError(f"{target}: answers WebSocket, but is not a node of this mesh (no 'Mesh-Protocol: 1')")
    return speaks_mesh


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
