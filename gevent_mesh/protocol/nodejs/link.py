"""One side of a link to a Node peer.

Rules:

- One cluster message is one WebSocket message. Two in one are both lost there.
- A dialer's HELLO is not answered. The first message that comes tells whether we were let in, and by whom: until then
  we say nothing that is worth anything.
- There are no numbers and no acknowledgements: what the kernel has taken counts as delivered. Nothing is sent twice.
- Namespaces come and go by heartbeats, one for each; the WebSocket's own pings tell whether the process is there.
- Node waits for the answers of those who serve a namespace, and so do we: nothing is answered in others.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ...errors import FrameError, HandshakeError, MessageError
from ..address import parse_address
from ..discovery import CLOSE_UNAUTHORIZED
from ..frames import MAX_ADDRESS_CHARS, MAX_FRAME_BYTES, MAX_STRANGER_FRAME_BYTES, Kind, Refusal, SessionState, is_uid
from ..link import LOOK_UP_EVERY, MAX_PENDING_PONGS, STALL_SECONDS, Dropped, Event, Identity, Phase, Proven, Status
from ..messages import ClusterMessage, MessageType
from ..session import Session
from ..websocket import FrameDecoder, Opcode, close_payload, frame, frame_header
from .discovery import token_field
from .messages import ANSWERS, Translated, is_request, pack, read_message, unpack

__all__ = ["FORGET_SECONDS", "HEARTBEAT_SECONDS", "HELLO_SECONDS", "NodejsLinkProtocol"]

HEARTBEAT_SECONDS = 5.0
"""Node peers want to hear of each namespace at least this often."""
FORGET_SECONDS = 10.0
"""A namespace that was not heard of for this long is not served any more."""
HELLO_SECONDS = 10.0
"""How long a dialer waits for a first message: a Node peer may only speak with its next heartbeat."""
WRITE_BYTES = 16 * 1024
"""How much goes into one write, at about 5 ms of translating. What is being written when a link breaks counts as
delivered."""
MAX_NAMESPACES = 1024
MAX_NAMESPACE_CHARS = 256
MAX_TOKEN_CHARS = 512

_CLOSE_NORMAL = 1000
_CLOSE_PROTOCOL = 1002

_STREAM = SessionState(b"\0nodejs\0", b"", 0)
"""What a Node peer would say of a session, if it knew of any: nothing."""


def hello(us: Identity, tokens: Sequence[str]) -> bytes:
    """A dialer's first message. It holds the token in clear."""
    return bytes((Kind.NODE_HELLO,)) + pack({"uid": us.uid, "address": us.address, **token_field(tokens)})


class NodejsLinkProtocol:
    """One side of a link to a Node peer. Driven like `gevent_mesh.protocol.link.LinkProtocol`.

    Phases::

        dialer    HELLO_SENT -> PROVEN -> UP -> CLOSED
        listener  WAIT_HELLO -> PROVEN -> UP -> CLOSED

    Args:
        us: what we say of ourselves.
        tokens: shared secrets, newest first.
        translate: makes messages fit for Node.
        namespaces: tells those that we serve.
        now: the monotonic time.
        target: dialer only: the uid that discovery names at the address that was dialled.
        heartbeat_interval: seconds between two heartbeats; they are never further apart than Node wants.
        heartbeat_timeout: seconds of silence after which the peer counts as gone.

    Attributes: see `LinkProtocol`.
    """

    round_trip_seconds: float | None = None

    def __init__(
        self,
        us: Identity,
        tokens: Sequence[str],
        translate: Callable[[bytes], list[Translated]],
        *,
        namespaces: Callable[[], Iterable[str]],
        now: float,
        target: str | None = None,
        heartbeat_interval: float = HEARTBEAT_SECONDS,
        heartbeat_timeout: float = FORGET_SECONDS,
    ) -> None:
        self._us = us
        self._tokens = tokens
        self._translate = translate
        self._namespaces_now = namespaces
        self._namespaces = list(namespaces())
        """Those that the peer has been told of."""
        self._target = target
        self.is_dialer = target is not None
        self.peer: Identity | None = None
        self.phase = Phase.HELLO_SENT if self.is_dialer else Phase.WAIT_HELLO
        # A Node peer may send us anything as soon as it has our HELLO.
        limit = MAX_FRAME_BYTES if self.is_dialer else MAX_STRANGER_FRAME_BYTES
        self._decoder = FrameDecoder(max_payload_bytes=limit, require_mask=not self.is_dialer)
        self._control: list[bytes] = []
        self._pongs = 0
        self._asked_for: dict[str, None] = {}
        self._beat_waits = False
        self._session: Session | None = None
        self._taken_upto = 0

        self.boot_key = b""
        self.hello_at = now
        self._heartbeat_interval = min(heartbeat_interval, HEARTBEAT_SECONDS)
        self._heartbeat_timeout = heartbeat_timeout
        self._forget_seconds = max(FORGET_SECONDS, heartbeat_timeout)
        self._heard_at = self._beat_at = now
        self._planned_tick: float | None = None
        self._their_namespaces: dict[str, float] = {}
        self.spoofed = 0
        self.undecodable = 0

        if self.is_dialer:
            self._queue(hello(us, tokens))
            # Its answer is how we learn that it took us.
            self._say_all(MessageType.INITIAL_HEARTBEAT, self._namespaces)

    def __repr__(self) -> str:
        other = self.peer.uid if self.peer else self._target or "?"
        arrow = "->" if self.is_dialer else "<-"
        return f"<NodejsLinkProtocol {self._us.uid} {arrow} {other} {self.phase.name}>"

    # ------------------------------------------------------------------ what the owner says

    def accept(self, session: Session, now: float) -> None:
        """Take the other side as a peer and carry `session` from now on."""
        if self.phase is not Phase.PROVEN:
            raise RuntimeError(f"accept() in phase {self.phase.name}")
        session.attach(_STREAM)
        self._session = session
        self._taken_upto = 0
        if not self.is_dialer:
            self._say_all(MessageType.INITIAL_HEARTBEAT, self._namespaces)
        self._decoder.max_payload_bytes = MAX_FRAME_BYTES
        self.phase = Phase.UP
        self._heard_at = now
        self._beat_at = now + self._heartbeat_interval

    def refuse(self, code: Refusal, reason: str) -> None:
        """Say goodbye, for each namespace if this node leaves, and close: what `outgoing` returns next is the last."""
        if self.phase is Phase.CLOSED:
            return
        if code is Refusal.LEAVING and (self.is_dialer or self.phase is Phase.UP):
            self._say_all(MessageType.ADAPTER_CLOSE, self._namespaces)
        status = _REFUSALS.get(code, _CLOSE_PROTOCOL)
        self._control.append(frame(Opcode.CLOSE, close_payload(status, reason), mask=self.is_dialer))
        self._end()

    def close(self) -> None:
        """The connection is gone, or about to be: nothing is sent or taken any more."""
        self._control.clear()
        self._end()

    def _end(self) -> None:
        self._settle()
        self._asked_for.clear()
        self.phase = Phase.CLOSED

    # ------------------------------------------------------------------ sending

    def outgoing(self) -> bytes:
        """Return the bytes to write now, empty if there are none. Calling again means that those before were taken."""
        self._settle()
        self._say_all(MessageType.HEARTBEAT, self._asked_for)
        parts, self._control = self._control, []
        self._asked_for.clear()
        self._pongs = 0
        self._beat_waits = False
        session = self._session
        if session is None or self.phase is not Phase.UP:
            return b"".join(parts)
        while session.has_waiting:
            first, messages = session.take(WRITE_BYTES)
            self._taken_upto = first + len(messages) - 1
            for message in messages:
                for translated in self._translate(message):
                    parts += self._parts_of(translated)
            if parts:
                return b"".join(parts)
            self._settle()
        return b"".join(parts)

    def _parts_of(self, message: Translated) -> Iterator[bytes]:
        yield frame_header(Opcode.BINARY, len(message.body) + 1, mask=self.is_dialer)
        yield bytes((Kind.NODE_MESSAGE,))
        yield message.body
        if message.shows and not self._serves(message.namespace):
            # The peer would wait for our answers in this namespace from now on.
            self._say(MessageType.ADAPTER_CLOSE, message.namespace)
        yield from self._control
        self._control.clear()

    def _settle(self) -> None:
        """What was handed out has been written, or is lost: in either case it must not be sent again."""
        session = self._session
        if session is not None and session.attached and self._taken_upto:
            session.acknowledge(self._taken_upto)
        self._taken_upto = 0

    @property
    def has_outgoing(self) -> bool:
        """Whether `outgoing` would return something."""
        return bool(self._control or self._asked_for) or (
            self.phase is Phase.UP and self._session is not None and self._session.has_waiting
        )

    def request_ack(self) -> None:
        """Node peers are told nothing of the kind."""

    def _queue(self, payload: bytes) -> None:
        self._control.append(frame(Opcode.BINARY, payload, mask=self.is_dialer))

    def _say_all(self, kind: MessageType, namespaces: Iterable[str]) -> None:
        for namespace in namespaces:
            self._say(kind, namespace)

    def _say(self, kind: MessageType, namespace: str) -> None:
        message = {"type": kind.value, "uid": self._us.uid, "nsp": namespace}
        self._queue(bytes((Kind.NODE_MESSAGE,)) + pack(message))

    # ------------------------------------------------------------------ heartbeats

    def next_tick(self) -> float:
        """When `tick` should be called next."""
        self._planned_tick = min(self._beat_at, self._heard_at + self._heartbeat_timeout)
        return self._planned_tick

    def tick(self, now: float, status: dict[str, Any], *, reads: bool = True) -> bool:  # noqa: ARG002
        """Send heartbeats if they are due.

        Args:
            status: of no use to Node peers.
            reads: see `LinkProtocol`.

        Returns:
            False when the peer has been silent for too long.
        """
        if not reads or (self._planned_tick is not None and now - self._planned_tick > STALL_SECONDS):
            # We were stopped or starved: see LinkProtocol.
            self._heard_at = now
        if now - self._heard_at >= self._heartbeat_timeout:
            return False
        if now >= self._beat_at and self.phase is Phase.UP:
            self._beat_at = now + self._heartbeat_interval
            if not self._beat_waits:
                self._beat()
        return True

    def _beat(self) -> None:
        self._beat_waits = True
        before = self._namespaces
        self._tell_namespaces()
        self._say_all(MessageType.HEARTBEAT, [known for known in before if known in self._namespaces])
        # One that serves no namespace any more says nothing, and is there all the same: its PONG tells.
        self._control.append(frame(Opcode.PING, b"", mask=self.is_dialer))

    def _tell_namespaces(self) -> None:
        """Tell the peer which namespaces have come and gone."""
        before, self._namespaces = self._namespaces, list(self._namespaces_now())
        self._say_all(MessageType.INITIAL_HEARTBEAT, [new for new in self._namespaces if new not in before])
        self._say_all(MessageType.ADAPTER_CLOSE, [gone for gone in before if gone not in self._namespaces])

    def _serves(self, namespace: str) -> bool:
        if namespace not in self._namespaces:
            self._tell_namespaces()
        return namespace in self._namespaces

    @property
    def heard_at(self) -> float:
        """When the last bytes came: any of them count as a sign of life."""
        return self._heard_at

    # ------------------------------------------------------------------ receiving

    def receive(self, data: bytes, now: float) -> Iterator[Event]:
        """Take bytes from the connection and yield what they mean, one event at a time.

        Raises:
            RemoteError: the connection must end.
        """
        self._heard_at = now
        self._decoder.feed(data)
        if self._forget_namespaces(now):
            yield self._status()
        dropped = 0
        while self.phase is not Phase.CLOSED and (found := self._decoder.next_frame()) is not None:
            opcode, payload = found
            if opcode == Opcode.BINARY:
                before = self.undecodable + self.spoofed
                yield from self._take(payload, now)
                dropped += self.undecodable + self.spoofed - before
                if dropped >= LOOK_UP_EVERY:
                    dropped = 0
                    yield Dropped()
            elif opcode == Opcode.PING:
                self._pong(payload)
            elif opcode == Opcode.CLOSE:
                self._control.append(frame(Opcode.CLOSE, payload, mask=self.is_dialer))
                self._end()

    def _pong(self, payload: bytes) -> None:
        self._pongs += 1
        if self._pongs > MAX_PENDING_PONGS:
            raise FrameError("pings come faster than they can be answered")
        self._control.append(frame(Opcode.PONG, payload, mask=self.is_dialer))

    def _take(self, payload: bytes, now: float) -> Iterator[Event]:
        kind = payload[0] if payload else None
        if self.phase is Phase.WAIT_HELLO:
            if kind != Kind.NODE_HELLO:
                raise self._refusal(Refusal.PROTOCOL, "the first message was no HELLO")
            self._take_hello(payload[1:], now)
            yield from self._prove()
        elif kind == Kind.NODE_MESSAGE:
            yield from self._take_message(payload[1:], now)
        elif kind != Kind.NODE_HELLO:
            self.undecodable += 1

    def _take_hello(self, payload: bytes, now: float) -> None:
        try:
            uid, address, token = _hello_fields(unpack(payload))
        except MessageError as exc:
            raise self._refusal(Refusal.PROTOCOL, f"HELLO: {exc}") from exc
        if self._tokens and not any(hmac.compare_digest(token, ours.encode()) for ours in self._tokens):
            raise self._refusal(Refusal.UNAUTHORIZED, "the tokens differ")
        if uid == self._us.uid:
            raise self._refusal(Refusal.PROTOCOL, "a node cannot be its own peer")
        self.peer = self._identity(uid, address)
        self.hello_at = now

    def _identity(self, uid: str, address: str) -> Identity:
        return Identity(uid, address, channel=self._us.channel, codec=self._us.codec, is_nodejs=True)

    def _prove(self) -> Iterator[Event]:
        if self.peer is None:
            raise RuntimeError("proved without a name")
        self.phase = Phase.PROVEN
        yield Proven(self.peer)
        if self.phase is Phase.PROVEN:
            raise RuntimeError("the owner must accept or refuse a proved peer")

    def _refusal(self, code: Refusal, reason: str) -> HandshakeError:
        self.refuse(code, reason)
        return HandshakeError(code, reason)

    def _take_message(self, payload: bytes, now: float) -> Iterator[Event]:
        message: ClusterMessage | None = None
        try:
            for message in read_message(payload):
                if message is None:
                    yield Dropped()
        except MessageError:
            self.undecodable += 1
        if message is None or self.phase is Phase.CLOSED:
            return
        if self.phase is Phase.HELLO_SENT:
            if message.uid != self._target:
                raise self._refusal(Refusal.WRONG_PEER, f"wanted {self._target}, found {message.uid}")
            self.peer = self._identity(message.uid, "")
            yield from self._prove()
        if self.phase is not Phase.UP:
            return
        if self.peer is None or message.uid != self.peer.uid:
            self.spoofed += 1
            return
        changed = self._note_namespace(message, now)
        if message.type in (MessageType.INITIAL_HEARTBEAT, MessageType.HEARTBEAT, MessageType.ADAPTER_CLOSE):
            yield self._status()
            return
        if changed:
            yield self._status()
        if not is_request(message) or self._serves(message.nsp):
            yield message

    # -- namespaces

    def _note_namespace(self, message: ClusterMessage, now: float) -> bool:
        """Take from a message that its namespace is served; returns whether that is news."""
        theirs, namespace = self._their_namespaces, message.nsp
        if message.type is MessageType.ADAPTER_CLOSE:
            return theirs.pop(namespace, None) is not None
        if message.type in ANSWERS or len(namespace) > MAX_NAMESPACE_CHARS:
            return False
        if message.type is MessageType.INITIAL_HEARTBEAT and self._serves(namespace):
            # Once with the next write, however often it is asked for. (Node tells all; the others know already.)
            self._asked_for[namespace] = None
        is_new = namespace not in theirs
        if not is_new or len(theirs) < MAX_NAMESPACES:
            theirs[namespace] = now
        return is_new

    def _forget_namespaces(self, now: float) -> bool:
        theirs = self._their_namespaces
        gone = [namespace for namespace, heard_at in theirs.items() if now - heard_at > self._forget_seconds]
        for namespace in gone:
            del theirs[namespace]
        return bool(gone)

    def _status(self) -> Status:
        return Status({"namespaces": sorted(self._their_namespaces)})


_REFUSALS = {Refusal.LEAVING: _CLOSE_NORMAL, Refusal.UNAUTHORIZED: CLOSE_UNAUTHORIZED}


def _hello_fields(value: object) -> tuple[str, str, bytes]:
    if type(value) is not dict:
        raise MessageError("not a map")
    uid, address, token = value.get("uid"), value.get("address"), value.get("token") or ""
    if type(uid) is not str or not is_uid(uid):
        raise MessageError("uid must be 16 lower-case hex digits")
    if type(address) is not str or len(address) > MAX_ADDRESS_CHARS:
        raise MessageError(f"address must be text of at most {MAX_ADDRESS_CHARS} characters")
    try:
        parse_address(address)
    except ValueError as exc:
        raise MessageError(str(exc)) from exc
    if type(token) is not str or len(token) > MAX_TOKEN_CHARS:
        raise MessageError("token must be text")
    return uid, address, token.encode("utf-8", "replace")
