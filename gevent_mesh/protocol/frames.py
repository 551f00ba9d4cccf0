"""Link frames: what one WebSocket message between two nodes may be, and how it is written.

The first byte of every message is its kind. Kinds and the positions of fields are **append only**: a decoder ignores
fields that it does not know, so that a newer node can add some. All integers are big-endian. Decoding trusts nothing:
whatever arrives becomes a frame or a `FrameError`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import msgpack

from ..errors import FrameError

__all__ = [
    "BOOT_KEY_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_STRANGER_FRAME_BYTES",
    "NONCE_BYTES",
    "PROOF_BYTES",
    "PROTOCOL_VERSION",
    "STREAM_BYTES",
    "Auth",
    "Batch",
    "Bye",
    "Challenge",
    "Frame",
    "Gap",
    "Heartbeat",
    "Hello",
    "Kind",
    "Refusal",
    "Role",
    "SessionState",
    "Welcome",
    "batch_header",
    "decode_frame",
    "encode_frame",
    "is_uid",
]

PROTOCOL_VERSION: Final = 1
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
STREAM_BYTES: Final = 8
BOOT_KEY_BYTES: Final = 16

MAX_STRANGER_FRAME_BYTES: Final = 1024
"""The largest frame before the other side has proved that it knows the token."""
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024 + 1024
"""The largest frame at all. No outbox may be configured above 64 MiB, so one message always fits."""

MAX_CONTROL_BYTES: Final = 64 * 1024
"""The largest frame that is no BATCH: a HEARTBEAT with 60 long namespaces has a quarter of that."""

MAX_PROOFS: Final = 4
MAX_ADDRESS_CHARS: Final = 256
MAX_NAME_CHARS: Final = 128
MAX_REASON_CHARS: Final = 200
UID_CHARS: Final = 16

_U64 = struct.Struct("!Q")
_TWO_U64 = struct.Struct("!QQ")
_BATCH = struct.Struct("!BQQ")
_HEX = frozenset("0123456789abcdef")


class Kind(IntEnum):
    """The first byte of a link message. Append only; 0x00 and 0x01 belong to Node peers."""

    NODE_HELLO = 0x00
    NODE_MESSAGE = 0x01
    HELLO = 0x10
    CHALLENGE = 0x11
    AUTH = 0x12
    WELCOME = 0x13
    BATCH = 0x14
    HEARTBEAT = 0x15
    GAP = 0x16
    BYE = 0x17


class Refusal(IntEnum):
    """Why a link ends on purpose; travels in BYE. Append only."""

    LEAVING = 0
    """The node stops. Its peers forget the session at once."""
    WRONG_PEER = 1
    """The dialer wanted another uid: the address has a new owner."""
    UNAUTHORIZED = 2
    DUPLICATE = 3
    """The pair is being linked in the other direction already."""
    VERSION = 4
    CHANNEL = 5
    """The nodes belong to different applications."""
    PROTOCOL = 6
    BUSY = 7
    TAKEN = 8
    """The uid belongs to another process: the boot key is not that of the first link."""


class Role(IntEnum):
    """What a member of the mesh does. Append only."""

    NODE = 0
    EMITTER = 1
    """Publishes and serves no clients; nobody sends it events."""


@dataclass(frozen=True, slots=True)
class SessionState:
    """What one side knows of a session, told when a link is made.

    Attributes:
        stream: names the stream of messages that this side sends (8 random bytes, made with the session).
        their_stream: the stream that this side has been receiving; empty when it knows none.
        received: the last sequence number of `their_stream` that was handed on; 0 before the first.
    """

    stream: bytes
    their_stream: bytes
    received: int


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialer's first frame. `target` may be empty when only an address is known."""

    version: int
    uid: str
    address: str
    target: str
    nonce: bytes
    role: Role
    channel: str
    codec: str
    session: SessionState


@dataclass(frozen=True, slots=True)
class Challenge:
    """The listener's answer to HELLO. It says nothing that a stranger may not know. `boot` is the listener's boot proof
    for a dialer whose boot key it does not have (see `gevent_mesh.protocol.handshake`), and empty else."""

    version: int
    uid: str
    address: str
    nonce: bytes
    role: Role
    channel: str
    codec: str
    boot: bytes = b""


@dataclass(frozen=True, slots=True)
class Auth:
    """The dialer's proofs, one for each token that it holds. `boot` is its boot key or, for a listener that has seen
    it, a proof of it (see `gevent_mesh.protocol.handshake`); empty for a dialer that shows none."""

    proofs: tuple[bytes, ...]
    boot: bytes = b""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The listener's proof, and its side of the session: told only after the dialer has proved itself and the
    reader of the pair's former link has been stopped, so that `received` is exact. `boot` as in AUTH."""

    proof: bytes
    session: SessionState
    boot: bytes = b""


@dataclass(frozen=True, slots=True)
class Batch:
    """Cluster messages end to end. `first` is the number of the first one; without messages it is a mere
    acknowledgement."""

    first: int
    acknowledged: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life. `status` holds small facts (see `gevent_mesh.protocol.link`)."""

    acknowledged: int
    status: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Gap:
    """The messages after the last received one up to `upto` can no longer be sent; `count` of them were lost."""

    upto: int
    count: int


@dataclass(frozen=True, slots=True)
class Bye:
    """The link ends on purpose."""

    code: int
    reason: str


Frame = Hello | Challenge | Auth | Welcome | Batch | Heartbeat | Gap | Bye


def is_uid(value: object) -> bool:
    """Tell whether `value` has the form of a uid: 16 lower-case hex digits."""
    return type(value) is str and len(value) == UID_CHARS and _HEX.issuperset(value)


def batch_header(first: int, acknowledged: int) -> bytes:
    """The part of a BATCH before its messages, which the caller joins to it without a further copy."""
    return _BATCH.pack(Kind.BATCH, first, acknowledged)


def encode_frame(frame: Frame) -> bytes:
    """Return the bytes of one WebSocket message."""
    match frame:
        case Batch(first, acknowledged, body):
            return batch_header(first, acknowledged) + body
        case Heartbeat(acknowledged, status):
            return bytes((Kind.HEARTBEAT,)) + _U64.pack(acknowledged) + _pack(status)
        case Gap(upto, count):
            return bytes((Kind.GAP,)) + _TWO_U64.pack(upto, count)
        case Hello():
            fields = [
                frame.version, frame.uid, frame.address, frame.target, frame.nonce,
                int(frame.role), frame.channel, frame.codec, _state_fields(frame.session),
            ]  # fmt: skip
            return bytes((Kind.HELLO,)) + _pack(fields)
        case Challenge():
            fields = [
                frame.version, frame.uid, frame.address, frame.nonce, int(frame.role), frame.channel, frame.codec,
                *_boot_fields(frame.boot),
            ]  # fmt: skip
            return bytes((Kind.CHALLENGE,)) + _pack(fields)
        case Auth(proofs, boot):
            return bytes((Kind.AUTH,)) + _pack([list(proofs), *_boot_fields(boot)])
        case Welcome(proof, session, boot):
            return bytes((Kind.WELCOME,)) + _pack([proof, _state_fields(session), *_boot_fields(boot)])
        case Bye(code, reason):
            return bytes((Kind.BYE,)) + _pack([int(code), reason[:MAX_REASON_CHARS]])


def decode_frame(data: bytes) -> Frame:
    """Return the frame in one WebSocket message.

    Raises:
        FrameError: it is none of ours, or a field is missing, of the wrong type or too long.
    """
    if not data:
        raise FrameError("an empty link frame")
    decoder = _DECODERS.get(data[0])
    if decoder is None:
        raise FrameError(f"unknown frame kind 0x{data[0]:02x}")
    if data[0] != Kind.BATCH and len(data) > MAX_CONTROL_BYTES:
        raise FrameError(f"a control frame of {len(data)} bytes, more than {MAX_CONTROL_BYTES}")
    return decoder(data)


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _state_fields(state: SessionState) -> list[object]:
    return [state.stream, state.their_stream, state.received]


def _boot_fields(boot: bytes) -> list[object]:
    return [boot] if boot else []


def _unpack_fields(data: bytes, count: int) -> list[Any]:
    """Decode the msgpack array behind the kind byte, which must have at least `count` elements."""
    value = _unpack(data[1:])
    if type(value) is not list or len(value) < count:
        raise FrameError(f"frame 0x{data[0]:02x}: expected an array of {count} fields")
    return value


def _unpack(data: bytes) -> Any:
    # The limits keep a few bytes from announcing a huge container: control frames are small by nature.
    try:
        return msgpack.unpackb(
            data, raw=False, max_array_len=64, max_map_len=64, max_str_len=1024, max_bin_len=1024, max_ext_len=0
        )
    except Exception as exc:  # msgpack raises several unrelated classes for malformed input
        raise FrameError(f"undecodable control frame: {exc}") from exc


def _text(value: object, name: str, limit: int) -> str:
    # Printable: see `_decode_bye`.
    if type(value) is not str or len(value) > limit or not value.isprintable():
        raise FrameError(f"{name} must be printable text of at most {limit} characters")
    return value


def _uid(value: object, name: str) -> str:
    if not is_uid(value):
        raise FrameError(f"{name} must be 16 lower-case hex digits")
    return str(value)


def _blob(value: object, name: str, size: int) -> bytes:
    if type(value) is not bytes or len(value) != size:
        raise FrameError(f"{name} must be {size} bytes")
    return value


def _number(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise FrameError(f"{name} must be an unsigned 64-bit number")
    return value


def _role(value: object) -> Role:
    try:
        return Role(_number(value, "role"))
    except ValueError as exc:
        raise FrameError(f"unknown role {value!r}") from exc


def _state(value: object) -> SessionState:
    if type(value) is not list or len(value) < 3:
        raise FrameError("session state must be an array of 3 fields")
    stream, theirs, received = value[:3]
    if theirs != b"":
        _blob(theirs, "received stream", STREAM_BYTES)
    return SessionState(_blob(stream, "stream", STREAM_BYTES), theirs, _number(received, "received"))


def _boot(later: list[Any]) -> bytes:
    """The boot key or a proof of it, which is the first of the fields that may be left out."""
    if not later:
        return b""
    is_proof = type(later[0]) is bytes and len(later[0]) == PROOF_BYTES
    return _blob(later[0], "boot key", PROOF_BYTES if is_proof else BOOT_KEY_BYTES)


def _decode_hello(data: bytes) -> Hello:
    version, uid, address, target, nonce, role, channel, codec, session = _unpack_fields(data, 9)[:9]
    return Hello(
        _number(version, "version"),
        _uid(uid, "uid"),
        _text(address, "address", MAX_ADDRESS_CHARS),
        _uid(target, "target") if target != "" else "",
        _blob(nonce, "nonce", NONCE_BYTES),
        _role(role),
        _text(channel, "channel", MAX_NAME_CHARS),
        _text(codec, "codec", MAX_NAME_CHARS),
        _state(session),
    )


def _decode_challenge(data: bytes) -> Challenge:
    version, uid, address, nonce, role, channel, codec, *later = _unpack_fields(data, 7)
    return Challenge(
        _number(version, "version"),
        _uid(uid, "uid"),
        _text(address, "address", MAX_ADDRESS_CHARS),
        _blob(nonce, "nonce", NONCE_BYTES),
        _role(role),
        _text(channel, "channel", MAX_NAME_CHARS),
        _text(codec, "codec", MAX_NAME_CHARS),
        _blob(later[0], "boot proof", PROOF_BYTES) if later else b"",
    )


def _decode_auth(data: bytes) -> Auth:
    proofs, *later = _unpack_fields(data, 1)
    if type(proofs) is not list or not 1 <= len(proofs) <= MAX_PROOFS:
        raise FrameError(f"AUTH must hold 1 to {MAX_PROOFS} proofs")
    return Auth(tuple(_blob(proof, "proof", PROOF_BYTES) for proof in proofs), _boot(later))


def _decode_welcome(data: bytes) -> Welcome:
    proof, session, *later = _unpack_fields(data, 2)
    return Welcome(_blob(proof, "proof", PROOF_BYTES), _state(session), _boot(later))


def _decode_batch(data: bytes) -> Batch:
    if len(data) < _BATCH.size:
        raise FrameError("a BATCH is shorter than its header")
    _, first, acknowledged = _BATCH.unpack_from(data)
    return Batch(first, acknowledged, data[_BATCH.size :])


def _decode_heartbeat(data: bytes) -> Heartbeat:
    if len(data) < 9:
        raise FrameError("a HEARTBEAT is shorter than its header")
    status = _unpack(data[9:])
    if type(status) is not dict:
        raise FrameError("a HEARTBEAT's status must be a map")
    return Heartbeat(_U64.unpack_from(data, 1)[0], status)


def _decode_gap(data: bytes) -> Gap:
    if len(data) < 17:
        raise FrameError("a GAP is shorter than its two numbers")
    return Gap(*_TWO_U64.unpack_from(data, 1))


def _decode_bye(data: bytes) -> Bye:
    code, reason = _unpack_fields(data, 2)[:2]
    if type(reason) is not str or len(reason) > 4 * MAX_REASON_CHARS:
        raise FrameError("reason must be a short text")
    # It stands in logs, and must not make lines of its own there.
    return Bye(_number(code, "code"), reason if reason.isprintable() else ascii(reason))


_DECODERS: dict[int, Callable[[bytes], Frame]] = {
    Kind.HELLO: _decode_hello,
    Kind.CHALLENGE: _decode_challenge,
    Kind.AUTH: _decode_auth,
    Kind.WELCOME: _decode_welcome,
    Kind.BATCH: _decode_batch,
    Kind.HEARTBEAT: _decode_heartbeat,
    Kind.GAP: _decode_gap,
    Kind.BYE: _decode_bye,
}
