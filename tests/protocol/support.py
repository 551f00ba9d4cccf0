"""What the tests of the core share: fixed identities, and two links back to back with no socket between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gevent_mesh.errors import RemoteError
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.frames import NONCE_BYTES, Frame, decode_frame, encode_frame
from gevent_mesh.protocol.handshake import Keys
from gevent_mesh.protocol.link import Event, Identity, LinkProtocol, Proven
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from gevent_mesh.protocol.session import Session
from gevent_mesh.protocol.websocket import FrameDecoder, Opcode, frame

__all__ = [
    "HIGH",
    "KEYS",
    "LOW",
    "OTHER",
    "TOKEN",
    "Side",
    "connect",
    "connected",
    "dialer",
    "event",
    "exchange",
    "frames_in",
    "listener",
    "numbers",
    "session",
    "whole",
    "wire",
]

LOW = "00000000000000aa"
"""The uid that dials."""
HIGH = "ff000000000000bb"
OTHER = "77000000000000cc"
TOKEN = "a token that is long enough"
KEYS = Keys([TOKEN])

Split = Callable[[bytes], Iterable[bytes]]


def session(letter: str = "a", *, limit_bytes: int = 1 << 20) -> Session:
    """A session whose stream is named with one letter."""
    return Session(letter.encode() * 8, limit_bytes=limit_bytes)


def event(number: int, *, uid: str = LOW, fill: str = "") -> bytes:
    """A numbered cluster message."""
    return messages.encode(MessageType.SERVER_SIDE_EMIT, uid, "/", {"packet": ["event", number, fill]})


class Side:
    """One end of a link, with an owner who takes every peer that is proven."""

    def __init__(self, protocol: LinkProtocol, its_session: Session) -> None:
        self.protocol = protocol
        self.session = its_session
        self.events: list[Event] = []
        self.error: RemoteError | None = None

    def receive(self, data: bytes, now: float = 0.0) -> None:
        """What a reader does."""
        if self.error is not None:
            return
        try:
            for found in self.protocol.receive(data, now):
                self.events.append(found)
                if isinstance(found, Proven):
                    self.protocol.accept(self.session, now)
        except RemoteError as exc:
            self.error = exc

    def of_type(self, kind: type[Any]) -> list[Any]:
        """The events of one type."""
        return [found for found in self.events if isinstance(found, kind)]


def dialer(
    uid: str = LOW,
    *,
    target: str | None = HIGH,
    keys: Keys = KEYS,
    session: Session | None = None,
    now: float = 0.0,
    heartbeat_timeout: float = 10.0,
    **identity: Any,
) -> Side:
    """The side that says HELLO."""
    its_session = Session(b"dialdial", limit_bytes=1 << 20) if session is None else session
    protocol = LinkProtocol(
        Identity(uid, f"ws://{uid}:4000", **identity), keys, nonce=b"d" * NONCE_BYTES, now=now,
        target=target, session=its_session.state(), heartbeat_timeout=heartbeat_timeout,
    )  # fmt: skip
    return Side(protocol, its_session)


def listener(
    uid: str = HIGH, *, keys: Keys = KEYS, session: Session | None = None, now: float = 0.0, **identity: Any
) -> Side:
    """The side that waits for HELLO."""
    its_session = Session(b"listlist", limit_bytes=1 << 20) if session is None else session
    protocol = LinkProtocol(Identity(uid, f"ws://{uid}:4000", **identity), keys, nonce=b"l" * NONCE_BYTES, now=now)
    return Side(protocol, its_session)


def whole(data: bytes) -> Iterable[bytes]:
    """All bytes in one piece."""
    return (data,)


def exchange(a: Side, b: Side, *, now: float = 0.0, split: Split = whole) -> None:
    """Carry bytes in both directions until neither side has anything to say."""
    while a.protocol.has_outgoing or b.protocol.has_outgoing:
        for sender, receiver in ((a, b), (b, a)):
            for piece in split(sender.protocol.outgoing()):
                receiver.receive(piece, now)


def connected(a: Side | None = None, b: Side | None = None, *, now: float = 0.0) -> tuple[Side, Side]:
    """A dialer and a listener whose link is up."""
    a, b = a or dialer(now=now), b or listener(now=now)
    exchange(a, b, now=now)
    assert a.error is None, a.error
    assert b.error is None, b.error
    return a, b


def connect(ours: Session, theirs: Session) -> tuple[Side, Side]:
    """Link two sessions that may have met before."""
    return connected(dialer(session=ours), listener(session=theirs))


def wire(found: Frame, *, mask: bool) -> bytes:
    """A frame as it goes over the connection; the dialer masks."""
    return frame(Opcode.BINARY, encode_frame(found), mask=mask)


def frames_in(data: bytes, *, masked: bool) -> list[Frame]:
    """The link frames in what one side wrote."""
    decoder = FrameDecoder(max_payload_bytes=1 << 20, require_mask=masked)
    decoder.feed(data)
    found = []
    while (item := decoder.next_frame()) is not None:
        if item[0] == Opcode.BINARY:
            found.append(decode_frame(item[1]))
    return found


def numbers(side: Side) -> list[int]:
    """The numbers of the events that came, in order."""
    return [found.data["packet"][1] for found in side.of_type(ClusterMessage)]
