from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.wire import EVENT_BYTES, TICK, Sequence, frame, padding, texts


def server_frame(payload: bytes, opcode: int = 1) -> bytes:
    if len(payload) < 126:
        head = bytes([0x80 | opcode, len(payload)])
    elif len(payload) < 1 << 16:
        head = bytes([0x80 | opcode, 126]) + struct.pack(">H", len(payload))
    else:
        head = bytes([0x80 | opcode, 127]) + struct.pack(">Q", len(payload))
    return head + payload


@given(st.lists(st.sampled_from([0, 1, 110, 125, 126, 300, 70_000]), max_size=4), st.data())
def test_texts_come_whole_however_the_bytes_are_cut(lengths: list[int], data: st.DataObject) -> None:
    payloads = [b"%d" % i * length for i, length in enumerate(lengths)]
    stream = b"".join(server_frame(payload) for payload in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    seen: list[bytes] = []
    rest = b""
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        some, rest = texts(rest + stream[start:end])
        seen += some
    assert seen == payloads
    assert rest == b""


def test_pings_are_not_texts() -> None:
    assert texts(server_frame(b"?", opcode=9) + server_frame(b"40")) == ([b"40"], b"")


def test_a_close_frame_is_an_error() -> None:
    with pytest.raises(ConnectionError):
        texts(server_frame(b"", opcode=8))


def test_a_client_frame_is_masked_with_zeros() -> None:
    assert frame(b"40") == b"\x81\x82\0\0\0\x0040"


def test_an_event_has_about_the_size_it_should_have() -> None:
    event = TICK + b"54321,123456789012345" + f',"{padding()}"]'.encode()
    assert abs(len(event) - EVENT_BYTES) <= 2


@pytest.mark.parametrize(
    ("numbers", "received", "doubled", "late"),
    [
        ([], 0, 0, 0),
        ([0, 1, 2], 3, 0, 0),
        ([0, 2, 3], 3, 0, 0),
        ([0, 1, 1, 2, 0], 3, 2, 0),
        ([0, 2, 1, 1], 3, 1, 1),
        ([3, 0, 1, 2, 3], 4, 1, 3),
    ],
)
def test_sequence_tells_repeats_from_latecomers(numbers: list[int], received: int, doubled: int, late: int) -> None:
    sequence = Sequence()
    for number in numbers:
        sequence.add(number)
    assert (sequence.received, sequence.doubled, sequence.late) == (received, doubled, late)
