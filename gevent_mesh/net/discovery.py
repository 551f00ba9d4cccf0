"""The client of one discovery server: registers this node, keeps the roster up to date, and never gives up.

Rules:

- Losing discovery says nothing about peers: while the server is away, whoever listens keeps the last roster.
- Where the nodes of a host serve discovery in turn, whoever is not connected tries that first (`serve`). There the loss
  of a connection is no trouble yet, and is not told as one: somebody takes over.
- Full-jitter backoff between tries, reset only by a roster: a server that lets us connect and then refuses us must not
  be tried without end at the fastest pace.
- The server proves that it knows a token before its roster is believed. Our token is never sent, except to the Node
  package's server, where that is allowed: it knows no other way.
- The reader greenlet owns the state; the writer greenlet owns the socket's sending side, the pings, and the judgement
  that the server has been silent for too long.
"""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import monotonic

import gevent
from gevent.event import Event

from ..errors import ExhaustedError, MeshError
from ..protocol import discovery as wire
from ..protocol import nodejs
from ..protocol.membership import EXHAUSTED_SECONDS, Backoff
from ..protocol.websocket import FrameDecoder, Opcode, close_payload, frame, parse_close
from ..tls import NO_TLS, Tls
from .dialer import dial
from .transport import Transport

__all__ = ["DiscoveryClient"]

_log = logging.getLogger(__name__)

#: From the connection to the roster, in seconds.
_REGISTER_SECONDS = 10.0
#: Silence after which the server is gone, in pings: it answers ours, and sends its own. Less than a lease, so that who
#: has a dead connection is registered again before the server takes it off the roster.
_SILENT_PINGS = 2
#: The first pause between two tries at most, and the longest, in seconds: the latter is how long it may take until
#: everybody is back after the server is.
_PAUSES = {"base_seconds": 0.5, "cap_seconds": 5.0}
#: The same where this process may serve itself: nobody is asked who could be asked too often.
_PAUSES_TO_SERVE = {"base_seconds": 0.1, "cap_seconds": 2.0}
#: How long `stop` waits for the goodbye to leave.
_GOODBYE_SECONDS = 1.0
#: The same trouble is told again after this time, in seconds.
_TELL_AGAIN_SECONDS = 60.0
#: Before the server has proved itself.
_MAX_WELCOME_BYTES = 1024
#: What may wait to be sent: we say little, so more means that the server makes us answer and does not read.
_MAX_QUEUED_FRAMES = 64

_ADVICE = {
    wire.CLOSE_UNAUTHORIZED: "it does not accept our token: set the same auth token (MESH_AUTH_TOKEN) on every node "
    "and on the discovery server",
    wire.CLOSE_TAKEN: "somebody else is registered there under our uid",
    wire.CLOSE_FULL: "it has no room for more nodes",
}


class _Ended(MeshError):
    """The connection is over; the text says why."""


class DiscoveryClient:
    """Registers one node with one discovery server.

    Args:
        url: of the server, ``ws://host:port`` or ``wss://host:port``.
        uid: of this node.
        secret: 16 bytes, new at every start; lets this node take its own registration back. No server sees it: each
            gets another one, made of it, so that none can take this node's place at the others.
        role: ``"node"``, or ``"emitter"`` for one that only watches the roster.
        tokens: shared secrets, newest first; the server has to know one of them.
        address_for: gives the address to register, when told our own IP address on the connection to the server.
        on_roster: called with the url, the whole roster (address by uid, ourselves included), whether it is
            complete, and the uids that the server has just seen go, after every change. Runs in this client's greenlet
            and must not block.
        on_away: called with the url when the server cannot be reached any more. The same holds.
        accept_nodejs: register with the Node package's server as well; it gets our newest token in clear.
        tls: what ``wss://`` is dialled with.
        serve: has this process serve at `url`, if nobody does, and returns why it does not, or "". Called in this
            client's greenlet before each try to connect.
        rng: for the backoff.

    Attributes:
        connected: registered, and the roster has come.
        last_error: why the last connection failed or ended; None once a roster has come.
        roster_seen: set once a first roster has come, and never cleared.
    """

    def __init__(
        self,
        url: str,
        *,
        uid: str,
        secret: bytes,
        role: str,
        tokens: Sequence[str],
        address_for: Callable[[str], str],
        on_roster: Callable[[str, dict[str, str], bool, tuple[str, ...]], None],
        on_away: Callable[[str], None] = lambda _url: None,
        accept_nodejs: bool = False,
        tls: Tls = NO_TLS,
        serve: Callable[[], str] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.url = url
        self.connected = False
        self.last_error: str | None = None
        self.roster_seen = Event()
        self._uid = uid
        self._secret = wire.secret_for(url, secret)
        self._role: wire.Role = "emitter" if role == "emitter" else "node"
        self._keys = wire.DiscoveryKeys(tokens)
        self._tokens = tokens
        self._accept_nodejs = accept_nodejs
        self._tls = tls
        self._address_for = address_for
        self._on_roster = on_roster
        self._on_away = on_away
        self._serve = serve
        self._why_not_we = ""
        pauses = _PAUSES if serve is None else _PAUSES_TO_SERVE
        self._backoff = Backoff(rng or random.Random(secrets.randbits(64)), **pauses)
        self._told: dict[str, float] = {}
        self._stopping = False
        self._connection: _Connection | None = None
        self._greenlet: gevent.Greenlet | None = None

    def __repr__(self) -> str:
        return f"<DiscoveryClient {self.url} {'connected' if self.connected else self.last_error or 'connecting'}>"

    def start(self) -> None:
        """Begin; returns at once."""
        if self._greenlet is None:
            self._stopping = False
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Leave the roster, now, and stay away. Takes a second at most."""
        self._stopping = True
        if self._connection is not None:
            self._connection.say_goodbye()
        self._kill()

    def forget(self) -> None:
        """In a forked child: give everything up without a word. The parent stays registered."""
        self._stopping = True
        if self._connection is not None:
            self._connection.transport.forget()
        self._kill(block=False)

    def _kill(self, *, block: bool = True) -> None:
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=block)
        self.connected = False

    @property
    def transport(self) -> Transport | None:
        """The connection to the server, if there is one."""
        return None if self._connection is None else self._connection.transport

    # ------------------------------------------------------------------ the reader greenlet

    def _run(self) -> None:
        while not self._stopping:
            exhausted = False
            try:
                self._session()
            except MeshError as error:
                exhausted = isinstance(error, ExhaustedError)
                if not self._stopping:
                    self._fail(str(error).removeprefix(f"{self.url}: "))
            except (Exception, gevent.Timeout) as error:  # noqa: BLE001  # the top of a greenlet: a bug must not end discovery
                self.last_error = repr(error)
                _log.exception("the client of discovery %s crashed; it goes on", self.url)
            gevent.sleep(EXHAUSTED_SECONDS if exhausted else self._backoff.next_delay())

    def _session(self) -> None:
        """One connection, from dialling to its end, which is always an exception."""
        if self._serve is not None:
            self._why_not_we = self._serve()
        transport = dial(self.url, require_mesh=not self._accept_nodejs, tls=self._tls)
        connection = self._connection = _Connection(transport)
        try:
            roster = self._register(connection) if transport.speaks_mesh else self._register_nodejs(connection)
            self._take(roster.servers, roster)
            for message in connection.messages(wire.MAX_MESSAGE_ENTRIES):
                self._take_message(roster.servers, message)
        finally:
            was_connected, self.connected = self.connected, False
            self._connection = None
            connection.end()
            if was_connected:
                self._on_away(self.url)

    def _register(self, connection: _Connection) -> wire.Roster:
        messages = connection.messages()
        challenge = wire.parse_challenge(next(messages))
        register = self._answer(challenge, connection.transport.local_host)
        connection.send(frame(Opcode.BINARY, register.encode(), mask=True))
        welcome = wire.parse_welcome(next(messages))
        if not self._keys.is_server(challenge, register, welcome):
            raise _Ended("it accepted us, but does not know our token itself")
        connection.trust()
        return wire.parse_roster(next(connection.messages(wire.MAX_MESSAGE_ENTRIES)))

    def _register_nodejs(self, connection: _Connection) -> wire.Roster:
        if self._role != "node":
            raise _Ended("it is the Node package's, which has no way to look on without being a node")
        register = nodejs.register(self._uid, self._address_for(connection.transport.local_host), self._tokens)
        connection.send(frame(Opcode.BINARY, register, mask=True))
        # It proves nothing, and its first roster may be a large one.
        connection.trust()
        return nodejs.read_update(next(connection.messages(wire.MAX_MESSAGE_ENTRIES)))

    def _answer(self, challenge: wire.Challenge, local_host: str) -> wire.Register:
        address = self._address_for(local_host) if self._role == "node" else ""
        nonce = secrets.token_bytes(wire.NONCE_BYTES)
        proofs = self._keys.client_proofs(challenge, nonce, self._uid, address)
        return wire.Register(self._uid, address, self._role, nonce=nonce, proofs=proofs, secret=self._secret)

    def _take_message(self, servers: dict[str, str], message: dict[str, object]) -> None:
        if message["type"] == "delta":
            delta = wire.parse_delta(message)
            for uid in delta.removed:
                servers.pop(uid, None)
            servers.update(delta.added)
            self._take(servers, delta)
        elif message["type"] == "roster":
            self._take_roster(servers, wire.parse_roster(message))
        elif message["type"] == "update" and self._accept_nodejs:
            self._take_roster(servers, nodejs.read_update(message))

    def _take_roster(self, servers: dict[str, str], roster: wire.Roster) -> None:
        servers.clear()
        servers.update(roster.servers)
        self._take(servers, roster)

    def _take(self, servers: dict[str, str], news: wire.Roster | wire.Delta) -> None:
        if news.malformed:
            self._tell(f"{news.malformed} entries of its roster are malformed and were left out")
        excess = len(servers) - wire.MAX_ROSTER_ENTRIES
        if excess > 0:
            self._tell(
                f"its roster has {len(servers)} nodes, more than {wire.MAX_ROSTER_ENTRIES}; the rest is left out"
            )
            for uid in list(servers)[-excess:]:
                del servers[uid]
        if not self.connected:
            # After a trouble that was told, its end is told at the same level.
            level = logging.WARNING if self.last_error in self._told else logging.INFO
            self.connected = True
            self.last_error = None
            self._why_not_we = ""
            self._backoff.reset()
            _log.log(level, "registered with discovery %s; it knows %d nodes", self.url, len(servers))
        removed = news.removed if isinstance(news, wire.Delta) else ()
        self._on_roster(self.url, dict(servers), news.complete, removed)
        self.roster_seen.set()

    def _fail(self, trouble: str) -> None:
        """A connection has ended, or could not be had."""
        trouble = f"{trouble}; {self._why_not_we}" if self._why_not_we else trouble
        if self._serve is not None and self.last_error is None:
            self.last_error = trouble
            _log.info("discovery %s: %s", self.url, trouble)
        else:
            self._tell(trouble)

    def _tell(self, trouble: str) -> None:
        """Log a trouble, unless it was told a short time ago."""
        self.last_error = trouble
        now = monotonic()
        if now >= self._told.get(trouble, now):
            self._told = {text: until for text, until in self._told.items() if until > now}
            self._told[trouble] = now + _TELL_AGAIN_SECONDS
            _log.warning("discovery %s: %s", self.url, trouble)


class _Connection:
    """One connection to the server: frames out of a queue, messages in."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._frames = FrameDecoder(max_payload_bytes=_MAX_WELCOME_BYTES, require_mask=False)
        self._heard_at = monotonic()
        self._trusted = False
        self._queue: deque[bytes] = deque()
        self._wake = Event()
        self._closing = False
        self._silent = False
        self._writer = gevent.spawn(self._write)

    def send(self, data: bytes) -> None:
        """Queue a frame.

        Raises:
            _Ended: too many are waiting.
        """
        if len(self._queue) >= _MAX_QUEUED_FRAMES:
            raise _Ended("it does not read what we send")
        self._queue.append(data)
        self._wake.set()

    def trust(self) -> None:
        """The server is who it should be: it may send a whole roster, and may be silent for longer."""
        self._frames.max_payload_bytes = wire.MAX_ROSTER_BYTES
        self._trusted = True
        self._heard_at = monotonic()

    def messages(self, max_entries: int = 0) -> Iterator[dict[str, object]]:
        """What the server says, until it is over, which is an exception.

        Raises:
            _Ended: the connection is over.
            MeshError: what came is malformed.
        """
        while True:
            item = self._frames.next_frame()
            if item is None:
                self._receive()
                continue
            opcode, payload = item
            if opcode == Opcode.BINARY:
                yield wire.decode(payload, max_entries=max_entries)
            elif opcode == Opcode.PING:
                self.send(frame(Opcode.PONG, payload, mask=True))
            elif opcode == Opcode.CLOSE:
                code, reason = parse_close(payload)
                said = reason if reason.isprintable() else ascii(reason)
                raise _Ended(_ADVICE.get(code) or f"it closed the connection: {code} {said}".rstrip())

    def say_goodbye(self) -> None:
        """Tell the server that we leave, and close. Waits a short time for that to be sent."""
        self._closing = True
        self._queue.append(frame(Opcode.CLOSE, close_payload(1000, "leaving"), mask=True))
        self._wake.set()
        self._writer.join(timeout=_GOODBYE_SECONDS)

    def end(self) -> None:
        """Whatever happens, nothing of it is left."""
        self.transport.abort()
        self._writer.kill(block=False)

    def _receive(self) -> None:
        data = self.transport.recv()
        if not data:
            raise _Ended("it was silent for too long" if self._silent else "the connection was lost")
        if self._trusted:
            # Before that, the time runs from the start: registering has one deadline, however much is said.
            self._heard_at = monotonic()
        self._frames.feed(data)

    def _write(self) -> None:
        try:
            self._write_until_over()
        finally:
            # However it ends: nobody else would notice that the server is silent.
            self.transport.abort()

    def _write_until_over(self) -> None:
        ping_at = monotonic() + wire.PING_SECONDS
        with contextlib.suppress(ConnectionError):
            while not (self._closing and not self._queue):
                self._wake.wait(timeout=wire.PING_SECONDS / 10)
                self._wake.clear()
                now = monotonic()
                if now - self._heard_at > (_SILENT_PINGS * wire.PING_SECONDS if self._trusted else _REGISTER_SECONDS):
                    self._silent = True
                    break
                if now >= ping_at:
                    ping_at = now + wire.PING_SECONDS
                    self._queue.append(_PING)
                while self._queue:
                    self.transport.send(self._queue.popleft())
            if self._closing:
                self.transport.close()


_PING = frame(Opcode.PING, b"", mask=True)
