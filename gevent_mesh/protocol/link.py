"""One connection between two nodes: bytes in, events out, bytes to send.

Everything that changes a link's state is here. It owns no socket and no greenlet: a driver feeds `receive` with what
arrives, writes what `outgoing` returns, and calls `tick` when `next_tick` says so.

Phases::

    dialer    HELLO_SENT -> AUTH_SENT -> PROVEN -> UP -> CLOSED
    listener  WAIT_HELLO -> WAIT_AUTH -> PROVEN -> UP -> CLOSED

PROVEN is the moment of the owner: it may refuse, must stop the pair's former link, and then calls `accept` with the
session. Until then the other side may send two frames of 1 KiB and nothing else.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from ..errors import FrameError, HandshakeError, MessageError
from . import frames
from .frames import (
    Auth,
    Bye,
    Challenge,
    Frame,
    Gap,
    Heartbeat,
    Hello,
    Kind,
    Refusal,
    Role,
    SessionState,
    Welcome,
    decode_frame,
    encode_frame,
)
from .handshake import Keys, boot_key_for, boot_proof
from .messages import ClusterMessage, parse
from .session import Session
from .unpacking import read_all
from .websocket import FrameDecoder, Opcode, close_payload, frame, frame_header

__all__ = [
    "BATCH_BYTES",
    "LOOK_UP_EVERY",
    "MAX_PENDING_PONGS",
    "STALL_SECONDS",
    "AnyLinkProtocol",
    "Claimed",
    "Dropped",
    "Event",
    "Identity",
    "Left",
    "LinkProtocol",
    "Lost",
    "Phase",
    "Proven",
    "Status",
]

BATCH_BYTES = 256 * 1024
"""How much one BATCH carries, unless a single message is larger."""
MAX_PENDING_PONGS = 16
LOOK_UP_EVERY = 64
"""Messages that may be dropped in a row before the driver hears of it."""
STALL_SECONDS = 1.0
"""A tick that comes this much too late means that this process stood still, not that the peer did."""

_NORMAL_CLOSE = 1000
_BATCH_HEADER = struct.Struct("!BQQ")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node says of itself in HELLO or CHALLENGE.

    Attributes:
        codec: names the form of the packets that its clients get; equal codecs exchange encoded packets.
        is_nodejs: it is a Node.js server (see `gevent_mesh.protocol.nodejs`).
    """

    uid: str
    address: str = ""
    role: Role = Role.NODE
    channel: str = "socketio"
    codec: str = "json"
    is_nodejs: bool = False


@dataclass(frozen=True, slots=True)
class Claimed:
    """A dialer says who it is; nothing is proved. The owner may `refuse`."""

    uid: str


@dataclass(frozen=True, slots=True)
class Proven:
    """The other side knows the token. The owner must `accept` or `refuse`."""

    peer: Identity


@dataclass(frozen=True, slots=True)
class Status:
    """A heartbeat came; `facts` is what the peer says of itself."""

    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """The peer declared messages lost that it can no longer send."""

    count: int


@dataclass(frozen=True, slots=True)
class Left:
    """The peer ends the link on purpose."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """Some messages were not worth an event of their own: repeats, or malformed. A moment for the driver to look up."""


Event = ClusterMessage | Claimed | Proven | Status | Lost | Left | Dropped


class Phase(Enum):
    """See the module's docstring."""

    WAIT_HELLO = auto()
    WAIT_AUTH = auto()
    HELLO_SENT = auto()
    AUTH_SENT = auto()
    PROVEN = auto()
    UP = auto()
    CLOSED = auto()


class AnyLinkProtocol(Protocol):
    """What drivers and the table of peers need of one side of a link, whoever the peer is; see `LinkProtocol`."""

    peer: Identity | None
    boot_key: bytes
    phase: Phase
    hello_at: float
    is_dialer: bool
    round_trip_seconds: float | None
    spoofed: int
    undecodable: int

    @property
    def has_outgoing(self) -> bool: ...

    @property
    def heard_at(self) -> float: ...

    def accept(self, session: Session, now: float) -> None: ...

    def refuse(self, code: Refusal, reason: str) -> None: ...

    def close(self) -> None: ...

    def outgoing(self) -> bytes: ...

    def request_ack(self) -> None: ...

    def next_tick(self) -> float: ...

    def tick(self, now: float, status: dict[str, Any], *, reads: bool = True) -> bool: ...

    def receive(self, data: bytes, now: float) -> Iterator[Event]: ...


class LinkProtocol:
    """One side of a link.

    Args:
        us: what we say of ourselves.
        keys: what we and our peers know.
        nonce: 32 random bytes, fresh for this link.
        now: the monotonic time.
        target: dialer only: the uid that we want to reach; empty when only its address is known.
        session: dialer only: what we know of the session with `target`.
        secret: of this process; keeps others from taking its place (see `gevent_mesh.protocol.handshake`).
        known_key: the boot key that a uid has shown before; empty when it has not.
        heartbeat_interval: seconds between two heartbeats.
        heartbeat_timeout: seconds of silence after which the peer counts as gone.

    Attributes:
        peer: who the other side is, once it has said so.
        boot_key: what the other side has shown, or proved to have; empty for one that has done neither.
        hello_at: when HELLO was sent, or received: how old its word on the session is.
        round_trip_seconds: the last measured round trip; None before the first.
        spoofed: messages dropped because they carried another uid than the link's.
        undecodable: messages dropped because of their shape.
    """

    def __init__(
        self,
        us: Identity,
        keys: Keys,
        *,
        nonce: bytes,
        now: float,
        target: str | None = None,
        session: SessionState | None = None,
        secret: bytes = b"",
        known_key: Callable[[str], bytes] = lambda _uid: b"",
        heartbeat_interval: float = 5.0,
        heartbeat_timeout: float = 10.0,
    ) -> None:
        self._us = us
        self._keys = keys
        self._nonce = nonce
        self._target = target or ""
        self._secret = secret
        self._known_key = known_key
        self.is_dialer = session is not None
        self.peer: Identity | None = None
        self.boot_key = b""
        self.phase = Phase.HELLO_SENT if self.is_dialer else Phase.WAIT_HELLO
        self._decoder = FrameDecoder(max_payload_bytes=frames.MAX_STRANGER_FRAME_BYTES, require_mask=not self.is_dialer)
        self._control: list[bytes] = []
        self._pongs = 0
        self._ack_wanted = False
        self._session: Session | None = None

        self._hello = b""
        self._challenge = b""
        self._proofs: tuple[bytes, ...] = ()
        self._their_boot = b""
        self._their_state: SessionState | None = None
        self.hello_at = now
        self._asked_at = now

        self._heartbeat_interval = heartbeat_interval
        self._heartbeat_timeout = heartbeat_timeout
        self._heard_at = now
        self._beat_at = now
        self._planned_tick: float | None = None
        self._their_clock: tuple[int, float] | None = None
        self.round_trip_seconds: float | None = None
        self.spoofed = 0
        self.undecodable = 0

        if session is not None:
            hello = Hello(
                frames.PROTOCOL_VERSION, us.uid, us.address, self._target, nonce,
                us.role, us.channel, us.codec, session,
            )  # fmt: skip
            self._hello = encode_frame(hello)
            self._queue(self._hello)

    def __repr__(self) -> str:
        other = self.peer.uid if self.peer else self._target or "?"
        arrow = "->" if self.is_dialer else "<-"
        return f"<LinkProtocol {self._us.uid} {arrow} {other} {self.phase.name}>"

    # ------------------------------------------------------------------ what the owner says

    def accept(self, session: Session, now: float) -> None:
        """Take the other side as a peer and carry `session` from now on.

        Raises:
            FrameError: the peer's idea of the session cannot be true.
        """
        if self.phase is not Phase.PROVEN or self._their_state is None:
            raise RuntimeError(f"accept() in phase {self.phase.name}")
        ours = session.state()
        gap = session.attach(self._their_state)
        self._session = session
        if not self.is_dialer:
            boot = self._boot_for_dialer(ours)
            self._queue(encode_frame(Welcome(self._welcome_proof(ours, boot), ours, boot)))
        if gap is not None:
            self._queue(encode_frame(gap))
        self._decoder.max_payload_bytes = frames.MAX_FRAME_BYTES
        self.phase = Phase.UP
        self._heard_at = self._beat_at = now

    def refuse(self, code: Refusal, reason: str) -> None:
        """Say BYE and close: what `outgoing` returns next is the last."""
        if self.phase is Phase.CLOSED:
            return
        self._queue(encode_frame(Bye(code, reason)))
        self._control.append(frame(Opcode.CLOSE, close_payload(_NORMAL_CLOSE, Refusal(code).name), mask=self.is_dialer))
        self.phase = Phase.CLOSED

    def close(self) -> None:
        """The connection is gone, or about to be: nothing is sent or taken any more."""
        self._control.clear()
        self.phase = Phase.CLOSED

    # ------------------------------------------------------------------ sending

    def outgoing(self) -> bytes:
        """Return the bytes to write now, empty if there are none: control frames, then one BATCH of all that waits."""
        control, self._control = self._control, []
        self._pongs = 0
        if self._session is None or self.phase is not Phase.UP:
            return b"".join(control)
        session = self._session
        if not session.has_waiting:
            if self._ack_wanted:
                self._ack_wanted = False
                control.append(self._batch(session.next_sequence, session.acknowledgement(), []))
            return b"".join(control)
        self._ack_wanted = False
        first, messages = session.take(BATCH_BYTES)
        control.append(self._batch(first, session.acknowledgement(), messages))
        return b"".join(control)

    @property
    def has_outgoing(self) -> bool:
        """Whether `outgoing` would return something."""
        if self._control:
            return True
        return self.phase is Phase.UP and self._session is not None and (self._ack_wanted or self._session.has_waiting)

    def request_ack(self) -> None:
        """Tell the peer what we have received with the next write, even if there is nothing else to say."""
        self._ack_wanted = self._session is not None and self._session.owes_ack

    def _batch(self, first: int, acknowledged: int, messages: list[bytes]) -> bytes:
        head = frames.batch_header(first, acknowledged)
        size = len(head) + sum(map(len, messages))
        return b"".join([frame_header(Opcode.BINARY, size, mask=self.is_dialer), head, *messages])

    def _queue(self, payload: bytes) -> None:
        self._control.append(frame(Opcode.BINARY, payload, mask=self.is_dialer))

    # ------------------------------------------------------------------ heartbeats

    def next_tick(self) -> float:
        """When `tick` should be called next."""
        self._planned_tick = min(self._beat_at, self._heard_at + self._heartbeat_timeout)
        return self._planned_tick

    def tick(self, now: float, status: dict[str, Any], *, reads: bool = True) -> bool:
        """Send a heartbeat if one is due.

        Args:
            status: small facts about us, such as ``{"clients": 12}``.
            reads: False while nobody reads what the peer may be sending.

        Returns:
            False when the peer has been silent for too long.
        """
        if not reads or (self._planned_tick is not None and now - self._planned_tick > STALL_SECONDS):
            # We were stopped, starved or busy. What the peer sent meanwhile is still in the socket: judge it afresh.
            self._heard_at = now
        if now - self._heard_at >= self._heartbeat_timeout:
            return False
        if now >= self._beat_at and self._session is not None:
            self._beat_at = now + self._heartbeat_interval
            # All of these are on their way: what `outgoing` returned before this heartbeat.
            facts = {**status, "sent": self._session.last_taken, "sent_at": round(now * 1e6)}
            if self._their_clock is not None:
                sent_at, received_at = self._their_clock
                facts["echo"], facts["held"] = sent_at, round((now - received_at) * 1e6)
            self._queue(encode_frame(Heartbeat(self._session.acknowledgement(), facts)))
        return True

    @property
    def heard_at(self) -> float:
        """When the last bytes came: any of them count as a sign of life."""
        return self._heard_at

    def _check_sent(self, sent: object) -> None:
        """A heartbeat comes behind the messages that were sent before it."""
        received = self._up_session().received
        if type(sent) is int and sent > received:
            raise FrameError(f"a heartbeat says that {sent} messages were sent, and {received} have come")

    def _note_status(self, facts: dict[str, Any], now: float) -> None:
        sent_at, echo, held = facts.get("sent_at"), facts.get("echo"), facts.get("held")
        if type(sent_at) is int:
            self._their_clock = (sent_at, now)
        if type(echo) is int and type(held) is int:
            self.round_trip_seconds = max(0.0, now - (echo + held) / 1e6)

    # ------------------------------------------------------------------ receiving

    def receive(self, data: bytes, now: float) -> Iterator[Event]:
        """Take bytes from the connection and yield what they mean, one event at a time.

        A message counts as received when it is yielded: a caller that stops in the middle gets the rest again over
        the next link.

        Raises:
            RemoteError: the connection must end. If the other side should know why, `outgoing` has it.
        """
        self._heard_at = now
        self._decoder.feed(data)
        while self.phase is not Phase.CLOSED and (found := self._decoder.next_frame()) is not None:
            opcode, payload = found
            if opcode == Opcode.BINARY:
                if self.phase is Phase.UP and payload[:1] == b"\x14":
                    yield from self._take_batch(payload)
                else:
                    yield from self._dispatch(decode_frame(payload), payload, now)
            elif opcode == Opcode.PING:
                self._pong(payload)
            elif opcode == Opcode.CLOSE:
                self.close()

    def _pong(self, payload: bytes) -> None:
        self._pongs += 1
        if self._pongs > MAX_PENDING_PONGS:
            raise FrameError("pings come faster than they can be answered")
        self._control.append(frame(Opcode.PONG, payload, mask=self.is_dialer))

    def _dispatch(self, found: Frame, payload: bytes, now: float) -> Iterator[Event]:
        match self.phase, found:
            case Phase.UP, Heartbeat(acknowledged, facts):
                self._up_session().acknowledge(acknowledged)
                self._check_sent(facts.get("sent"))
                self._note_status(facts, now)
                yield Status(facts)
            case Phase.UP, Gap():
                lost = self._up_session().skip(found)
                if lost:
                    yield Lost(lost)
            case _, Bye(code, reason):
                yield from self._take_bye(code, reason)
            case Phase.WAIT_HELLO, Hello():
                yield from self._take_hello(found, payload, now)
            case Phase.WAIT_AUTH, Auth():
                yield from self._take_auth(found, now)
            case Phase.HELLO_SENT, Challenge():
                self._take_challenge(found, payload, now)
            case Phase.AUTH_SENT, Welcome():
                yield from self._take_welcome(found)
            case _:
                raise FrameError(f"a {Kind(payload[0]).name} frame in phase {self.phase.name}")

    def _take_bye(self, code: int, reason: str) -> Iterator[Event]:
        was_up = self.phase is Phase.UP
        self.close()
        if not was_up:
            raise HandshakeError(code, f"refused: {reason}")
        yield Left(code, reason)

    # -- listener

    def _take_hello(self, hello: Hello, payload: bytes, now: float) -> Iterator[Event]:
        us = self._us
        if hello.version < frames.PROTOCOL_VERSION:
            raise self._refusal(Refusal.VERSION, f"protocol version {hello.version} is too old")
        if hello.target not in ("", us.uid):
            raise self._refusal(Refusal.WRONG_PEER, f"this is {us.uid}, not {hello.target}")
        if hello.uid == us.uid:
            raise self._refusal(Refusal.PROTOCOL, "a node cannot be its own peer")
        self.peer = Identity(hello.uid, hello.address, hello.role, hello.channel, hello.codec)
        self.hello_at = now
        yield Claimed(hello.uid)
        if self.phase is not Phase.WAIT_HELLO:
            return
        self._hello, self._their_state = payload, hello.session
        challenge = Challenge(
            frames.PROTOCOL_VERSION, us.uid, us.address, self._nonce, us.role, us.channel, us.codec,
            self._boot_for_unknown(hello.uid),
        )  # fmt: skip
        self._challenge = encode_frame(challenge)
        self._queue(self._challenge)
        self._asked_at = now
        self.phase = Phase.WAIT_AUTH

    def _take_auth(self, auth: Auth, now: float) -> Iterator[Event]:
        self.boot_key = self._boot_key_in(auth.boot)
        self._challenge += auth.boot
        if not self._keys.is_dialer(auth.proofs, self._hello, self._challenge):
            raise self._refusal(Refusal.UNAUTHORIZED, "the tokens differ")
        self._proofs, self._their_boot = auth.proofs, auth.boot
        self.round_trip_seconds = now - self._asked_at
        yield from self._prove()

    def _boot_for_unknown(self, uid: str) -> bytes:
        """Our boot proof, if we do not have the dialer's boot key."""
        key = b"" if self._known_key(uid) else boot_key_for(uid, self._secret)
        return boot_proof(key, self._hello, self._nonce) if key else b""

    def _boot_for_dialer(self, ours: SessionState) -> bytes:
        """As the dialer did: nothing, our boot key, or a proof of it."""
        if not self._their_boot:
            return b""
        return self._our_boot(_state_bytes(ours), is_known=len(self._their_boot) == frames.PROOF_BYTES)

    def _welcome_proof(self, ours: SessionState, boot: bytes) -> bytes:
        proof = self._keys.listener_proof(self._proofs, self._hello, self._challenge, _state_bytes(ours) + boot)
        if proof is None:
            raise RuntimeError("the dialer was proved a moment ago")
        return proof

    # -- dialer

    def _take_challenge(self, challenge: Challenge, payload: bytes, now: float) -> None:
        if self._target and challenge.uid != self._target:
            raise self._refusal(Refusal.WRONG_PEER, f"wanted {self._target}, found {challenge.uid}")
        if challenge.uid == self._us.uid:
            raise self._refusal(Refusal.PROTOCOL, "a node cannot be its own peer")
        if challenge.version < frames.PROTOCOL_VERSION:
            raise self._refusal(Refusal.VERSION, f"protocol version {challenge.version} is too old")
        self.peer = Identity(challenge.uid, challenge.address, challenge.role, challenge.channel, challenge.codec)
        self.round_trip_seconds = now - self._asked_at
        self._challenge = payload
        boot = self._our_boot(is_known=self._is_known_to(challenge))
        self._challenge += boot
        self._queue(encode_frame(Auth(self._keys.dialer_proofs(self._hello, self._challenge), boot)))
        self.phase = Phase.AUTH_SENT

    def _is_known_to(self, challenge: Challenge) -> bool:
        """Whether the listener has our boot key, or may be somebody else who must not get it."""
        known = self._known_key(challenge.uid)
        is_itself = hmac.compare_digest(boot_proof(known, self._hello, challenge.nonce), challenge.boot)
        return bool(known) and not is_itself

    def _take_welcome(self, welcome: Welcome) -> Iterator[Event]:
        state = _state_bytes(welcome.session)
        if not self._keys.is_listener(welcome.proof, self._hello, self._challenge, state + welcome.boot):
            raise self._refusal(Refusal.UNAUTHORIZED, "the other side does not know the token")
        self._their_state, self.boot_key = welcome.session, self._boot_key_in(welcome.boot, state)
        yield from self._prove()

    # -- both

    def _our_boot(self, state: bytes = b"", *, is_known: bool) -> bytes:
        """What shows that we are the process that we were: never the key itself to who may be somebody else."""
        key = b"" if self.peer is None else boot_key_for(self.peer.uid, self._secret)
        return boot_proof(key, self._hello, self._challenge, state) if key and is_known else key

    def _boot_key_in(self, boot: bytes, state: bytes = b"") -> bytes:
        """The boot key that the other side has shown, or proved to have."""
        if len(boot) != frames.PROOF_BYTES:
            return boot
        known = b"" if self.peer is None else self._known_key(self.peer.uid)
        is_right = hmac.compare_digest(boot_proof(known, self._hello, self._challenge, state), boot)
        return known if is_right else b""

    def _prove(self) -> Iterator[Event]:
        peer = self.peer
        if peer is None:
            raise RuntimeError("proved without a name")
        if peer.channel != self._us.channel:
            raise self._refusal(Refusal.CHANNEL, f"{_on_channel(self._us)}, {_on_channel(peer)}")
        self.phase = Phase.PROVEN
        yield Proven(peer)
        if self.phase is Phase.PROVEN:
            raise RuntimeError("the owner must accept or refuse a proved peer")

    def _refusal(self, code: Refusal, reason: str) -> HandshakeError:
        self.refuse(code, reason)
        return HandshakeError(code, reason)

    def _up_session(self) -> Session:
        if self._session is None:
            raise RuntimeError("no session in phase UP")
        return self._session

    # -- cluster messages

    def _take_batch(self, payload: bytes) -> Iterator[Event]:
        session = self._up_session()
        if len(payload) < _BATCH_HEADER.size:
            raise FrameError("a BATCH is shorter than its header")
        _, number, acknowledged = _BATCH_HEADER.unpack_from(payload)
        session.acknowledge(acknowledged)
        if len(payload) == _BATCH_HEADER.size:
            return
        if number > session.received + 1:
            raise FrameError(f"messages {session.received + 1} to {number - 1} are missing")
        session.note_received(len(payload))
        dropped = 0
        for value in read_all(memoryview(payload)[_BATCH_HEADER.size :]):
            message = None
            if number <= session.received:
                session.repeats += 1
            else:
                session.received = number
                message = self._check(value)
            number += 1
            if message is not None:
                yield message
            else:
                dropped += 1
                if dropped % LOOK_UP_EVERY:
                    continue
                yield Dropped()
            if self.phase is not Phase.UP:
                return

    def _check(self, value: object) -> ClusterMessage | None:
        try:
            message = parse(value)
        except MessageError:
            # Ending the link would only bring the same message again: it is dropped, and counted.
            self.undecodable += 1
            return None
        peer = self.peer
        if peer is None or message.uid != peer.uid:
            self.spoofed += 1
            return None
        return message


def _state_bytes(state: SessionState) -> bytes:
    return b"".join((state.stream, state.their_stream, state.received.to_bytes(8, "big")))


def _on_channel(identity: Identity) -> str:
    """By name, and not "ours" and "theirs": the other side logs it as well."""
    return f"{identity.role.name.lower()} {identity.uid} is on channel {identity.channel!r}"
