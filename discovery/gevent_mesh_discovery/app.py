"""The discovery server: one greenlet reads each member, one writes to it, one publishes changes, one watches leases.

Rules:

- `Registry` decides; this module carries messages. Nothing yields between asking the registry and queueing the answer,
  so every member sees the roster and its changes in one order.
- A member's outgoing messages wait in a bounded queue. When it is full the member is too slow and is aborted: it will
  come back and get a roster.
- Changes are published at most once in `COALESCE_SECONDS`, encoded once for all members of a kind.
- Whatever a member sends can end its own connection and nothing else.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from gevent_mesh.errors import MessageError, WebSocketError
from gevent_mesh.net.listener import Listener, StrangerLimits, StrangerTicket
from gevent_mesh.net.transport import Transport
from gevent_mesh.protocol import discovery as wire
from gevent_mesh.protocol.address import Address
from gevent_mesh.protocol.tokens import check_bind
from gevent_mesh.protocol.websocket import FrameDecoder, Opcode, close_payload, frame
from gevent_mesh.tls import NO_TLS, Tls

from .registry import Change, Registry, Rejected

__all__ = ["Counters", "DiscoveryServer"]

_log = logging.getLogger(__name__)

#: A change waits at most this long for others: higher makes fewer and larger messages when many nodes start at once.
COALESCE_SECONDS = 0.1

#: The most that may wait for one member. A roster of 10,000 nodes is at most 3.5 MB.
MAX_QUEUED_BYTES = 8 * 1024 * 1024

#: How long a CLOSE frame may take to leave, behind what is queued.
_GOODBYE_SECONDS = 1.0

_LIMITS = StrangerLimits()


@dataclass(slots=True)
class Counters:
    """What happened since the start."""

    registrations: int = 0
    disconnects: int = 0
    roster_broadcasts: int = 0
    unauthorized: int = 0
    taken: int = 0
    malformed: int = 0
    slow: int = 0


class DiscoveryServer:
    """A discovery server on a port of its own.

    Args:
        host: the address to bind.
        port: 0 for any free one; see `port` after `start`.
        tokens: shared secrets, any of which is accepted; up to four. Without one everybody may register.
        allow_anonymous: bind to other than loopback without a token.
        lease_seconds: silence after which a member is gone, see `wire.LEASE_SECONDS`.
        ping_seconds: how often members are pinged.
        max_members: more are refused.
        limits: for connections that have not registered.
        tls: whether it speaks TLS, and how.

    Raises:
        ConfigError: the combination is refused; the text says what to set.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        tokens: Sequence[str] = (),
        allow_anonymous: bool = False,
        lease_seconds: float = wire.LEASE_SECONDS,
        ping_seconds: float = wire.PING_SECONDS,
        max_members: int = 10_000,
        limits: StrangerLimits = _LIMITS,
        tls: Tls = NO_TLS,
    ) -> None:
        check_bind("host", host, tokens, allow_anonymous)
        self.counters = Counters()
        self.tls = tls
        self.instance = secrets.token_hex(8)
        self._tokens = tuple(tokens)
        self._keys = wire.DiscoveryKeys(tokens)
        self._ping_seconds = ping_seconds
        self._registry: Registry[_Member] = Registry(
            monotonic(), lease_seconds=lease_seconds, ping_seconds=ping_seconds, max_members=max_members
        )
        self._members: dict[_Member, None] = {}
        self._changed = Event()
        self._greenlets: list[gevent.Greenlet] = []
        self._was_complete = False
        self._listener = Listener(
            host,
            port,
            on_websocket=self._serve,
            http_app=self._http,
            require_mesh_header=False,
            limits=limits,
            tls=tls,
        )

    @property
    def port(self) -> int:
        """The real port, once started."""
        return self._listener.port

    @property
    def url(self) -> str:
        """What nodes are given as the address of this server."""
        return str(Address(self.tls.listens, self._listener.host, self.port))

    @property
    def registered(self) -> int:
        """The number of nodes in the roster."""
        return len(self._registry)

    def start(self) -> None:
        """Serve.

        Raises:
            StartError: the port cannot be bound.
        """
        self._listener.start()
        self._greenlets = [gevent.spawn(_repeat, step) for step in (self._publish, self._watch)]

    def stop(self) -> None:
        """Serve no more. Members are told that the server is going away; that takes a second at most."""
        self._listener.stop()
        gevent.killall(self._greenlets)
        members = list(self._members)
        for member in members:
            member.close(wire.CLOSE_GOING_AWAY, "going away")
        gevent.joinall([member.writer for member in members], timeout=_GOODBYE_SECONDS)
        for member in members:
            member.transport.abort()

    def forget(self) -> None:
        """In a forked child: give up our copies of all descriptors, without a word. The parent goes on serving."""
        self._listener.forget()
        gevent.killall(self._greenlets, block=False)
        for member in list(self._members):
            member.forget()

    # ------------------------------------------------------------------ one member

    def _serve(self, transport: Transport, ticket: StrangerTicket) -> None:
        """One connection, from its upgrade to its end; runs in its greenlet."""
        member = _Member(transport, ticket, self.counters)
        if ticket.speaks_mesh:
            member.challenge = wire.Challenge(secrets.token_bytes(wire.NONCE_BYTES), self.instance)
            member.send(member.challenge.encode())
        try:
            self._read(member)
        except (MessageError, WebSocketError) as error:
            self.counters.malformed += 1
            _log.debug("%s sent something malformed: %s", transport.peer_address, error)
            member.close(error.code if isinstance(error, WebSocketError) else wire.CLOSE_MALFORMED, "malformed")
        finally:
            self._remove(member)
            member.finish()

    def _read(self, member: _Member) -> None:
        while data := member.transport.recv():
            member.heard_at = monotonic()
            self._registry.heard(member, member.heard_at)
            member.frames.feed(data)
            while not member.closing and (item := member.frames.next_frame()) is not None:
                self._take_frame(member, *item)
            if member.closing:
                return

    def _take_frame(self, member: _Member, opcode: int, payload: bytes) -> None:
        if opcode == Opcode.BINARY:
            self._take_register(member, wire.parse_register(wire.decode(payload)))
        elif opcode == Opcode.PING:
            member.queue(frame(Opcode.PONG, payload, mask=False))
        elif opcode == Opcode.CLOSE:
            member.close_with(payload)

    def _take_register(self, member: _Member, register: wire.Register) -> None:
        proof = self._authenticate(member, register)
        if proof is None:
            self.counters.unauthorized += 1
            member.close(wire.CLOSE_UNAUTHORIZED, "unauthorized")
            return
        problem = self.tls.name_problem(member.transport.certificate, register.address or None)
        if problem:
            self.counters.unauthorized += 1
            member.ticket.refused("wrong certificate", problem)
            member.close(wire.CLOSE_CERTIFICATE, problem)
            return
        answer = self._registry.register(member, register, monotonic())
        if isinstance(answer, Rejected):
            self.counters.taken += answer.code == wire.CLOSE_TAKEN
            _log.info("%s may not register as %s: %s", member.transport.peer_address, register.server_id, answer.reason)
            member.close(answer.code, answer.reason)
            return
        if answer.replaced is not None:
            answer.replaced.close(wire.CLOSE_REPLACED, "replaced")
        self._admit(member, register, proof)

    def _authenticate(self, member: _Member, register: wire.Register) -> bytes | None:
        """Our own proof (empty for a Node client), or None for somebody who does not know the token."""
        if member.challenge is not None:
            if not register.is_ours:
                raise MessageError("register: no proof")
            return self._keys.server_proof(member.challenge, register)
        return b"" if not self._tokens or self._is_token(register.token) else None

    def _admit(self, member: _Member, register: wire.Register, proof: bytes) -> None:
        now = monotonic()
        if member not in self._members:
            self.counters.registrations += 1
            member.ticket.admitted()
            member.frames.max_payload_bytes = wire.MAX_MESSAGE_BYTES
            member.pinged_at = now
            self._members[member] = None
            _log.info("%s registered %s at %s", member.transport.peer_address, register.server_id, register.address)
        if member.challenge is not None:
            registry = self._registry
            member.send(wire.Welcome(proof, registry.lease_seconds, self.instance).encode())
            member.send(wire.roster(self.instance, registry.version, registry.complete(now), registry.roster()))
        else:
            # A Node client asks by registering, also when nothing is new.
            member.wants_update = True
        self._changed.set()

    def _remove(self, member: _Member) -> None:
        if member not in self._members:
            return
        del self._members[member]
        self.counters.disconnects += 1
        if self._registry.unregister(member):
            self._changed.set()

    def _is_token(self, said: str) -> bool:
        return any(hmac.compare_digest(said.encode("utf-8", "replace"), token.encode()) for token in self._tokens)

    # ------------------------------------------------------------------ all members

    def _publish(self) -> None:
        """Tell the members what changed, as soon as it did, but not more often than every COALESCE_SECONDS."""
        self._changed.wait()
        self._changed.clear()
        change = self._registry.take_change(monotonic())
        self._tell(change)
        gevent.sleep(COALESCE_SECONDS)

    def _tell(self, change: Change | None) -> None:
        update: bytes | None = None
        delta = None if change is None else self._delta(change)
        told = 0
        for member in list(self._members):
            if member.challenge is not None:
                if delta is not None:
                    member.queue(delta)
                    told += 1
            elif change is not None or member.wants_update:
                member.wants_update = False
                update = update or _message(wire.update(self._registry.roster()))
                member.queue(update)
                told += 1
        if told:
            self.counters.roster_broadcasts += 1

    def _delta(self, change: Change) -> bytes:
        return _message(wire.delta(self.instance, change.version, change.complete, change.added, change.removed))

    def _watch(self) -> None:
        """Ping everybody in time, and cut whoever was silent for a lease."""
        gevent.sleep(min(1.0, self._ping_seconds / 2))
        self._listener.revive()
        now = monotonic()
        for member in self._registry.overdue(now):
            _log.info("%s was silent for %g s: cut", member, self._registry.lease_seconds)
            member.transport.abort()
        for member in list(self._members):
            if now - member.pinged_at >= self._ping_seconds:
                member.pinged_at = now
                member.queue(_PING)
        if self._registry.complete(now) and not self._was_complete:
            self._was_complete = True
            self._changed.set()

    # ------------------------------------------------------------------ HTTP

    def _http(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, kind, body, extra = self._answer(environ)
        length = ("Content-Length", str(len(body)))
        start_response(status, [("Content-Type", kind), length, ("Cache-Control", "no-store"), *extra])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: dict[str, Any]) -> tuple[str, str, bytes, list[tuple[str, str]]]:
        path = environ["PATH_INFO"]
        if path == "/healthz":
            return "200 OK", "text/plain", b"ok\n", []
        if path != "/roster":
            return "404 Not Found", "text/plain", b"not found\n", []
        if self._tokens and not self._is_bearer(environ.get("HTTP_AUTHORIZATION", "")):
            return "401 Unauthorized", "text/plain", b"unauthorized\n", [("WWW-Authenticate", "Bearer")]
        return "200 OK", "application/json", self._roster_json(), []

    def _is_bearer(self, header: str) -> bool:
        scheme, _, token = header.partition(" ")
        # WSGI hands headers over as Latin-1; a token may be any text.
        return scheme.lower() == "bearer" and self._is_token(token.strip().encode("latin-1").decode("utf-8", "replace"))

    def _roster_json(self) -> bytes:
        registry = self._registry
        status = {
            "instance": self.instance,
            "version": registry.version,
            "complete": registry.complete(monotonic()),
            "servers": wire.entries(registry.roster()),
        }
        return json.dumps(status).encode() + b"\n"


def _repeat(step: Callable[[], None]) -> None:
    """Do a step for ever. What fails in one of them must not be the end of it."""
    while True:
        try:
            step()
        except (Exception, gevent.Timeout):  # noqa: BLE001  # the top of a greenlet
            _log.exception("discovery failed because of an error of ours; it goes on")
            gevent.sleep(COALESCE_SECONDS)


class _Member:
    """One connection, registered or about to be, and its writer. Made in the greenlet that reads it.

    Attributes:
        challenge: what we asked one of our own clients; None for a Node client.
        closing: it is to end; nothing more is queued, and what comes is not read any more.
    """

    def __init__(self, transport: Transport, ticket: StrangerTicket, counters: Counters) -> None:
        self.transport = transport
        self.ticket = ticket
        self.challenge: wire.Challenge | None = None
        self.frames = FrameDecoder(max_payload_bytes=wire.MAX_REGISTER_BYTES, require_mask=True)
        self.heard_at = self.pinged_at = monotonic()
        self.wants_update = False
        self.closing = False
        self._counters = counters
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._wake = Event()
        self._end: gevent.Greenlet | None = None
        self._reader = gevent.getcurrent()
        self.writer = gevent.spawn(self._write)

    def __repr__(self) -> str:
        return f"<member {self.transport.peer_address}>"

    def send(self, message: bytes) -> None:
        """Queue a message for this member only."""
        self.queue(_message(message))

    def queue(self, data: bytes) -> None:
        """Queue a whole frame. Never waits; aborts a member that is too slow."""
        if self.closing:
            return
        if self._queue and self._queued_bytes + len(data) > MAX_QUEUED_BYTES:
            self._counters.slow += 1
            _log.warning("%s does not read: %d bytes wait for it, cut", self, self._queued_bytes)
            self.closing = True
            self.transport.abort()
            return
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._wake.set()

    def close(self, code: int, reason: str) -> None:
        """Say goodbye behind what is queued, and end the connection."""
        self.close_with(close_payload(code, reason))

    def close_with(self, payload: bytes) -> None:
        """The same with a ready payload: a CLOSE is answered with its own (RFC 6455, section 5.5.1)."""
        if self.closing:
            return
        self.queue(frame(Opcode.CLOSE, payload, mask=False))
        self.closing = True
        self._wake.set()
        # Whoever does not read must not keep the writer, and through it this connection, for ever.
        self._end = gevent.spawn_later(_GOODBYE_SECONDS, self.transport.abort)

    def forget(self) -> None:
        """In a forked child: give up our copy of the connection, and its greenlets, without a word."""
        self.closing = True
        self.transport.forget()
        for greenlet in (self._reader, self.writer):
            greenlet.kill(block=False)

    def finish(self) -> None:
        """The reader is done. Gives the writer a moment for the CLOSE frame, if there is one."""
        if self._end is not None:
            self.writer.join()
            self._end.kill(block=False)
        self.transport.abort()
        self.writer.kill(block=False)

    def _write(self) -> None:
        try:
            while self._queue or not self.closing:
                self._wake.wait()
                self._wake.clear()
                while self._queue:
                    data = self._queue.popleft()
                    self._queued_bytes -= len(data)
                    self.transport.send(data)
            self.transport.close()
        except ConnectionError:
            self.transport.abort()


def _message(payload: bytes) -> bytes:
    return frame(Opcode.BINARY, payload, mask=False)


_PING = frame(Opcode.PING, b"", mask=False)
