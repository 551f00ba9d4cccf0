"""Link frames: round trips, bytes that never change, and refusal of everything else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gevent_mesh.errors import FrameError
from gevent_mesh.protocol import frames
from gevent_mesh.protocol.frames import (
    Auth,
    Batch,
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
    batch_header,
    decode_frame,
    encode_frame,
    is_uid,
)

STATE = SessionState(b"stream-1", b"stream-2", 7)
HELLO = Hello(
    1, "0123456789abcdef", "ws://a:1", "fedcba9876543210", b"n" * 32, Role.NODE, "socketio", "json", STATE
)  # fmt: skip
BOOT_KEY = b"c" * 16
CHALLENGE = Challenge(1, "fedcba9876543210", "ws://b:2", b"m" * 32, Role.EMITTER, "socketio", "json")

EXAMPLES: list[tuple[Frame, str]] = [
    (
        HELLO,
        "109901b030313233343536373839616263646566a877733a2f2f613a31b066656463626139383736353433323130c420"
        + "6e" * 32
        + "00a8736f636b6574696fa46a736f6e93c40873747265616d2d31c40873747265616d2d3207",
    ),
    (
        CHALLENGE,
        "119701b066656463626139383736353433323130a877733a2f2f623a32c420" + "6d" * 32 + "01a8736f636b6574696fa46a736f6e",
    ),
    (
        replace(CHALLENGE, boot=b"p" * 32),
        "119801b066656463626139383736353433323130a877733a2f2f623a32c420"
        + "6d" * 32
        + "01a8736f636b6574696fa46a736f6ec420"
        + "70" * 32,
    ),
    (Auth((b"p" * 32, b"q" * 32)), "129192c420" + "70" * 32 + "c420" + "71" * 32),
    (Auth((b"p" * 32,), BOOT_KEY), "129291c420" + "70" * 32 + "c410" + "63" * 16),
    (
        Welcome(b"p" * 32, SessionState(b"stream-1", b"", 0)),
        "1392c420" + "70" * 32 + "93c40873747265616d2d31c40000",
    ),
    (
        Welcome(b"p" * 32, SessionState(b"stream-1", b"", 0), BOOT_KEY),
        "1393c420" + "70" * 32 + "93c40873747265616d2d31c40000" + "c410" + "63" * 16,
    ),
    (Batch(3, 2, b"\x01\x02"), "14000000000000000300000000000000020102"),
    (Heartbeat(5, {"clients": 12}), "15000000000000000581a7636c69656e74730c"),
    (Gap(9, 4), "1600000000000000090000000000000004"),
    (Bye(Refusal.DUPLICATE, "why"), "179203a3776879"),
]

# ---------------------------------------------------------------------- what is append only


@pytest.mark.parametrize(("frame", "wire"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_the_bytes_of_every_kind_never_change(frame: Frame, wire: str) -> None:
    assert encode_frame(frame).hex() == wire
    assert decode_frame(bytes.fromhex(wire)) == frame


def test_numbers_are_append_only() -> None:
    assert {kind.name: int(kind) for kind in Kind} == {
        "NODE_HELLO": 0x00,
        "NODE_MESSAGE": 0x01,
        "HELLO": 0x10,
        "CHALLENGE": 0x11,
        "AUTH": 0x12,
        "WELCOME": 0x13,
        "BATCH": 0x14,
        "HEARTBEAT": 0x15,
        "GAP": 0x16,
        "BYE": 0x17,
    }
    assert {code.name: int(code) for code in Refusal} == {
        "LEAVING": 0,
        "WRONG_PEER": 1,
        "UNAUTHORIZED": 2,
        "DUPLICATE": 3,
        "VERSION": 4,
        "CHANNEL": 5,
        "PROTOCOL": 6,
        "BUSY": 7,
        "TAKEN": 8,
    }
    assert {role.name: int(role) for role in Role} == {"NODE": 0, "EMITTER": 1}
    assert frames.PROTOCOL_VERSION == 1
    assert (frames.NONCE_BYTES, frames.PROOF_BYTES, frames.STREAM_BYTES) == (32, 32, 8)


def test_the_largest_hello_and_challenge_are_small_enough_for_strangers() -> None:
    # Four bytes a character; an address and a codec's name are ASCII.
    hello = Hello(
        1, "f" * 16, "a" * frames.MAX_ADDRESS_CHARS, "f" * 16, bytes(32), Role.EMITTER,
        "\U0001f600" * frames.MAX_NAME_CHARS, "c" * frames.MAX_NAME_CHARS, SessionState(bytes(8), bytes(8), 2**64 - 1),
    )  # fmt: skip
    assert len(encode_frame(hello)) <= frames.MAX_STRANGER_FRAME_BYTES
    assert decode_frame(encode_frame(hello)) == hello
    challenge = Challenge(
        1, "f" * 16, "a" * frames.MAX_ADDRESS_CHARS, bytes(32), Role.EMITTER,
        "\U0001f600" * frames.MAX_NAME_CHARS, "c" * frames.MAX_NAME_CHARS, bytes(32),
    )  # fmt: skip
    assert len(encode_frame(challenge)) <= frames.MAX_STRANGER_FRAME_BYTES


def test_the_largest_message_fits_into_a_frame() -> None:
    assert 64 * 1024 * 1024 + len(batch_header(1, 0)) <= frames.MAX_FRAME_BYTES


# ---------------------------------------------------------------------- round trips

uids = st.text("0123456789abcdef", min_size=16, max_size=16)
u64 = st.integers(0, 2**64 - 1)
chars = st.characters(exclude_categories=["Cs"])
printable = chars.filter(str.isprintable)
names = st.text(printable, max_size=128)
roles = st.sampled_from(Role)
states = st.builds(
    SessionState, st.binary(min_size=8, max_size=8), st.just(b"") | st.binary(min_size=8, max_size=8), u64
)
nonces = st.binary(min_size=32, max_size=32)
boots = st.just(b"") | st.binary(min_size=16, max_size=16) | st.binary(min_size=32, max_size=32)
fact = st.none() | st.booleans() | st.integers(0, 2**63) | names
facts = st.dictionaries(st.text(chars, max_size=8), fact, max_size=4)
every_frame: st.SearchStrategy[Frame] = st.one_of(
    st.builds(
        Hello,
        u64,
        uids,
        st.text(printable, max_size=256),
        st.just("") | uids,
        nonces,
        roles,
        names,
        names,
        states,
    ),
    st.builds(
        Challenge, u64, uids, st.text(printable, max_size=256), nonces, roles, names, names, st.just(b"") | nonces
    ),
    st.builds(Auth, st.lists(nonces, min_size=1, max_size=4).map(tuple), boots),
    st.builds(Welcome, nonces, states, boots),
    st.builds(Batch, u64, u64, st.binary(max_size=64)),
    st.builds(Heartbeat, u64, facts),
    st.builds(Gap, u64, u64),
    st.builds(Bye, u64, st.text(printable, max_size=200)),
)


@given(every_frame)
def test_every_frame_survives_the_wire(frame: Frame) -> None:
    assert decode_frame(encode_frame(frame)) == frame


def test_a_batch_header_is_the_front_of_a_batch() -> None:
    assert batch_header(3, 2) + b"body" == encode_frame(Batch(3, 2, b"body"))


def test_a_long_reason_is_cut() -> None:
    assert decode_frame(encode_frame(Bye(0, "\U0001f600" * 300))) == Bye(0, "\U0001f600" * 200)


# ---------------------------------------------------------------------- refusals


def _fields(frame: Frame) -> list[Any]:
    fields: list[Any] = msgpack.unpackb(encode_frame(frame)[1:])
    return fields


def _wire(kind: Kind, fields: object) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return bytes((kind,)) + packed


ARRAYS: dict[Kind, list[Any]] = {
    Kind.HELLO: _fields(HELLO),
    Kind.CHALLENGE: _fields(replace(CHALLENGE, boot=b"p" * 32)),
    Kind.AUTH: _fields(Auth((b"p" * 32,), b"p" * 32)),
    Kind.WELCOME: _fields(Welcome(b"p" * 32, STATE, BOOT_KEY)),
    Kind.BYE: _fields(Bye(0, "why")),
}
MAY_BE_LEFT_OUT = {Kind.CHALLENGE: 1, Kind.AUTH: 1, Kind.WELCOME: 1}
"""Fields at the end that not every node sends."""

BAD_NUMBER = [-1, 1.0, True, None, "1", b"1", [1]]
BAD_UID = ["", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "0123456789abcdeg", b"0123456789abcdef", 1]
BAD_TARGET = [uid for uid in BAD_UID if uid != ""] + [None, b""]
BAD_ADDRESS = ["x" * 257, b"ws://a:1", None, 1, ["ws://a:1"]]
BAD_NAME = ["x" * 129, b"json", None, 1]
BAD_BLOB = [b"", b"x" * 31, b"x" * 33, "x" * 32, None, 1, [1] * 32]
BAD_BOOT = [b"", b"x" * 15, b"x" * 17, b"x" * 31, b"x" * 33, "x" * 16, "x" * 32, None, 1]
BAD_ROLE = [*BAD_NUMBER, 2, 255]
BAD_STATE: list[Any] = [
    None, 1, {}, [], [b"stream-1"], [b"stream-1", b""],
    [b"short", b"", 0], [b"", b"", 0], ["stream-1", b"", 0],
    [b"stream-1", b"short", 0], [b"stream-1", "", 0], [b"stream-1", "stream-2", 0], [b"stream-1", None, 0],
    [b"stream-1", b"", -1], [b"stream-1", b"", None], [b"stream-1", b"", 1.5], [b"stream-1", b"", True],
]  # fmt: skip
BAD_PROOFS: list[Any] = [None, b"p" * 32, [], [b"p" * 32] * 5, *([blob] for blob in BAD_BLOB), [b"p" * 32, b"short"]]

BAD_FIELDS: dict[Kind, list[list[Any]]] = {
    Kind.HELLO: [
        BAD_NUMBER, BAD_UID, BAD_ADDRESS, BAD_TARGET, BAD_BLOB, BAD_ROLE, BAD_NAME, BAD_NAME, BAD_STATE,
    ],
    Kind.CHALLENGE: [BAD_NUMBER, BAD_UID, BAD_ADDRESS, BAD_BLOB, BAD_ROLE, BAD_NAME, BAD_NAME, BAD_BLOB],
    Kind.AUTH: [BAD_PROOFS, BAD_BOOT],
    Kind.WELCOME: [BAD_BLOB, BAD_STATE, BAD_BOOT],
    Kind.BYE: [BAD_NUMBER, ["x" * 801, b"why", None, 1]],
}  # fmt: skip


def _is_refused(data: bytes) -> bool:
    try:
        decode_frame(data)
    except FrameError:
        return True
    return False


@pytest.mark.parametrize("kind", ARRAYS)
def test_every_wrong_field_is_refused(kind: Kind) -> None:
    valid = ARRAYS[kind]
    assert len(BAD_FIELDS[kind]) == len(valid), "a field without a test"
    for position, bad_values in enumerate(BAD_FIELDS[kind]):
        for bad in bad_values:
            data = _wire(kind, [*valid[:position], bad, *valid[position + 1 :]])
            assert _is_refused(data), f"{kind.name} field {position} took {bad!r}"


@pytest.mark.parametrize("kind", ARRAYS)
def test_every_missing_field_is_refused(kind: Kind) -> None:
    valid = ARRAYS[kind]
    for size in range(len(valid) - MAY_BE_LEFT_OUT.get(kind, 0)):
        with pytest.raises(FrameError, match="expected an array"):
            decode_frame(_wire(kind, valid[:size]))


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("value", [None, 1, "text", b"bytes", {}, {"uid": 1}])
def test_fields_that_are_no_array_are_refused(kind: Kind, value: object) -> None:
    with pytest.raises(FrameError):
        decode_frame(_wire(kind, value))


@pytest.mark.parametrize("kind", ARRAYS)
def test_fields_of_a_newer_node_are_ignored(kind: Kind) -> None:
    valid = ARRAYS[kind]
    assert decode_frame(_wire(kind, [*valid, {"new": 1}, "more"])) == decode_frame(_wire(kind, valid))


@pytest.mark.parametrize("kind", MAY_BE_LEFT_OUT)
def test_fields_that_are_left_out_are_empty(kind: Kind) -> None:
    decoded = decode_frame(_wire(kind, ARRAYS[kind][: -MAY_BE_LEFT_OUT[kind]]))
    assert isinstance(decoded, (Challenge, Auth, Welcome))
    assert decoded.boot == b""


def test_there_is_a_limit_to_what_a_newer_node_may_add() -> None:
    assert decode_frame(_wire(Kind.BYE, [1, "why", *[None] * 62])) == Bye(1, "why")
    with pytest.raises(FrameError):
        decode_frame(_wire(Kind.BYE, [1, "why", *[None] * 63]))


def test_a_newer_session_state_is_read_as_far_as_it_is_known() -> None:
    newer = [b"p" * 32, [b"stream-1", b"stream-2", 7, "new"]]
    assert decode_frame(_wire(Kind.WELCOME, newer)) == Welcome(b"p" * 32, STATE)


def test_bytes_behind_the_numbers_of_a_gap_are_ignored() -> None:
    assert decode_frame(encode_frame(Gap(9, 4)) + b"new") == Gap(9, 4)


@pytest.mark.parametrize("frame", [Batch(1, 2, b""), Gap(1, 2), Heartbeat(1, {})], ids=["BATCH", "GAP", "HEARTBEAT"])
def test_a_header_that_is_cut_off_is_refused(frame: Frame) -> None:
    data = encode_frame(frame)
    for size in range(1, len(data)):
        with pytest.raises(FrameError):
            decode_frame(data[:size])


@pytest.mark.parametrize(
    "status", [b"", b"\xc0", b"\x90", b"\x01", b"\x81\x01\x01", b"\x80\x80", b"\xc1", b"\x81\xa1a"]
)
def test_a_heartbeat_status_must_be_one_map_with_text_keys(status: bytes) -> None:
    with pytest.raises(FrameError):
        decode_frame(bytes((Kind.HEARTBEAT,)) + bytes(8) + status)


@pytest.mark.parametrize("kind", [kind for kind in range(256) if not 0x10 <= kind <= 0x17])
def test_unknown_kinds_are_refused(kind: int) -> None:
    with pytest.raises(FrameError, match=f"unknown frame kind 0x{kind:02x}"):
        decode_frame(bytes((kind,)) + _wire(Kind.HELLO, ARRAYS[Kind.HELLO])[1:])


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(FrameError, match="empty"):
        decode_frame(b"")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array of 4 billion"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a map of 4 billion"),
        pytest.param(b"\x92\xdb\xff\xff\xff\xff", id="a text of 4 GiB"),
        pytest.param(b"\x91" * 100_000, id="deep"),
        pytest.param(b"\x92\x00\xa1\xff", id="text that is not UTF-8"),
        pytest.param(b"\x93\x00\xa1a\xd6\xff\x00\x00\x00\x00", id="an extension type"),
        pytest.param(b"\xc1", id="the byte that msgpack never uses"),
        pytest.param(b"\x92\x00\xa1a\x00", id="a second value"),
    ],
)
def test_malformed_fields_are_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        decode_frame(bytes((Kind.BYE,)) + body)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_random_bytes_are_a_frame_or_a_frame_error(data: bytes) -> None:
    _decode_or_refuse(data)


@given(st.sampled_from(list(Kind)), st.binary(max_size=100))
@settings(max_examples=300)
def test_random_bytes_behind_a_known_kind_are_a_frame_or_a_frame_error(kind: Kind, data: bytes) -> None:
    _decode_or_refuse(bytes((kind,)) + data)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(chars) | st.binary(),
    lambda values: st.lists(values, max_size=10) | st.dictionaries(st.text(chars, max_size=3), values, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(list(ARRAYS)), st.integers(0, 8), junk)
@settings(max_examples=300)
def test_a_field_of_any_type_is_a_frame_or_a_frame_error(kind: Kind, position: int, value: object) -> None:
    fields = list(ARRAYS[kind])
    fields[position % len(fields)] = value
    _decode_or_refuse(_wire(kind, fields))


@given(every_frame, st.data())
@settings(max_examples=300)
def test_a_mutated_frame_is_a_frame_or_a_frame_error(frame: Frame, data: st.DataObject) -> None:
    wire = bytearray(encode_frame(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(wire)))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip" if at < len(wire):
                wire[at] = data.draw(st.integers(0, 255))
            case "cut":
                del wire[at : at + 1]
            case _:
                wire[at:at] = data.draw(st.binary(max_size=4))
    _decode_or_refuse(bytes(wire))


def _decode_or_refuse(data: bytes) -> None:
    try:
        frame = decode_frame(data)
    except FrameError:
        return
    assert frame == decode_frame(encode_frame(frame)) or isinstance(frame, Heartbeat | Bye)


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("0123456789abcdef", True),
        ("0123456789abcde", False),
        ("0123456789abcdef0", False),
        ("0123456789ABCDEF", False),
        ("0123456789abcde ", False),
        ("", False),
        (b"0123456789abcdef", False),
        (None, False),
        (16, False),
    ],
)
def test_what_a_uid_is(value: object, answer: bool) -> None:
    assert is_uid(value) is answer
