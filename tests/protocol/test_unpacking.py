"""What others have packed: read whole or not at all, and never at more than it may cost."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable

import msgpack
import pytest

from gevent_mesh.errors import FrameError, MessageError, PayloadNotEncodable
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.messages import MessageType
from gevent_mesh.protocol.unpacking import DECODE, FREE_BYTES, MAX_VALUES, TOO_MANY_VALUES, read, read_all
from tests.protocol.bombs import bombs

MIB = 1024 * 1024


BOMBS = bombs(MIB // 2)


def peak_mib(work: Callable[[], object]) -> float:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_costs_two_copies_of_itself_and_no_more_than_5_mib_besides(bomb: bytes) -> None:
    def alone() -> None:
        with contextlib.suppress(MessageError):
            read(bomb, **DECODE)

    def in_a_batch() -> None:
        with contextlib.suppress(FrameError):
            list(read_all(bomb))

    for work in (alone, in_a_batch):
        assert peak_mib(work) < 5 + 2 * len(bomb) / MIB


def test_empty_maps_end_to_end_are_read_one_at_a_time() -> None:
    count = MIB
    assert peak_mib(lambda: sum(1 for _ in read_all(b"\x80" * count))) < 3 * count / MIB + 1


def test_what_follows_a_message_with_too_many_values_is_read() -> None:
    bomb = BOMBS["empty maps in an array"]
    found = list(read_all(msgpack.packb(1) + bomb + msgpack.packb("x" * 2 * FREE_BYTES) + msgpack.packb([2])))
    assert found == [1, TOO_MANY_VALUES, "x" * 2 * FREE_BYTES, [2]]


def test_large_values_are_read_like_small_ones() -> None:
    value = {"a": list(range(30_000)), b"b": [{"c": None}] * 100, 1: "x" * FREE_BYTES}
    packed = msgpack.packb(value)
    assert read(packed, **DECODE) == value
    assert list(read_all(packed + packed)) == [value, value]


def test_nothing_is_kept_of_what_turns_out_to_be_malformed() -> None:
    malformed = b"\x91" * 100 + msgpack.packb([list(range(1000))])[:-1] + b"\xc1"

    def many() -> None:
        for _ in range(500):
            with contextlib.suppress(MessageError):
                read(malformed[:500], **DECODE)
            with contextlib.suppress(MessageError):
                read(malformed, **DECODE)

    assert peak_mib(many) < 1


@pytest.mark.parametrize("data", [b"", b"\x92\x01", b"\x01\x02", b"\xc1", b"\xa1\xff", b"\x81\x90\x01"])
def test_what_is_not_exactly_one_value_is_malformed(data: bytes) -> None:
    with pytest.raises(MessageError):
        read(data, **DECODE)


@pytest.mark.parametrize("data", [b"\x92\x01", b"\x01\xc1", b"\xa1\xff", b"\x81\x90\x01", b"\xa1\xff" * FREE_BYTES])
def test_messages_that_cannot_be_told_apart_or_read_end_the_link(data: bytes) -> None:
    with pytest.raises(FrameError):
        list(read_all(data))


def test_nobody_sends_what_others_refuse() -> None:
    def event(values: int) -> bytes:
        packet = ["e", [{"k": n} for n in range(values // 3)]]
        return messages.encode(MessageType.SERVER_SIDE_EMIT, "0" * 16, "/", messages.server_side_emit(packet))

    (message,) = read_all(event(MAX_VALUES - 100))
    assert len(message["data"]["packet"][1]) == (MAX_VALUES - 100) // 3
    with pytest.raises(PayloadNotEncodable, match="32768 values"):
        event(MAX_VALUES + 100)


def test_an_encoded_event_may_be_as_large_as_an_outbox() -> None:
    data = messages.broadcast(messages.options(["room"]), encoded=['2["e",[' + "1," * MAX_VALUES + "1]]"], codec="json")
    (message,) = read_all(messages.encode(MessageType.BROADCAST, "0" * 16, "/", data))
    assert message["data"]["encoded"] == data["encoded"]


def test_rooms_count_as_values_also_beside_an_encoded_event() -> None:
    opts = messages.options([f"room {n}" for n in range(MAX_VALUES)])
    with pytest.raises(PayloadNotEncodable):
        messages.encode(MessageType.BROADCAST, "0" * 16, "/", messages.broadcast(opts, encoded=["2[]"], codec="json"))
