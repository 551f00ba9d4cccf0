"""The frame codec: what goes in comes out, limits hold, and nothing but WebSocketError ever comes out of garbage."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gevent_mesh.errors import WebSocketError
from gevent_mesh.protocol.websocket import (
    FrameDecoder,
    MessageDecoder,
    Opcode,
    close_payload,
    frame,
    frame_header,
    parse_close,
)

DATA_OPCODES = (Opcode.BINARY,)
CONTROL_OPCODES = (Opcode.CLOSE, Opcode.PING, Opcode.PONG)


def decoder(*, max_payload_bytes: int = 1 << 20, require_mask: bool = True) -> FrameDecoder:
    return FrameDecoder(max_payload_bytes=max_payload_bytes, require_mask=require_mask)


def drain(frames: FrameDecoder) -> list[tuple[int, bytes]]:
    found = []
    while (item := frames.next_frame()) is not None:
        found.append(item)
    return found


def drain_or_error(frames: FrameDecoder) -> tuple[list[tuple[int, bytes]], WebSocketError | None]:
    found: list[tuple[int, bytes]] = []
    try:
        while (item := frames.next_frame()) is not None:
            found.append(item)
    except WebSocketError as error:
        return found, error
    return found, None


def masked(opcode: int, payload: bytes, key: bytes) -> bytes:
    """A frame as a browser or the Node package sends it, masked the slow and obvious way."""
    header = frame_header(opcode, len(payload), mask=True)
    return header[:-4] + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))


def error_of(data: bytes, **limits: int) -> WebSocketError:
    frames = decoder(**limits)  # type: ignore[arg-type]  # only max_payload_bytes is ever given
    frames.feed(data)
    with pytest.raises(WebSocketError) as caught:
        drain(frames)
    return caught.value


any_frame = st.one_of(
    st.tuples(st.sampled_from(DATA_OPCODES), st.binary(max_size=300)),
    st.tuples(st.sampled_from(CONTROL_OPCODES), st.binary(max_size=125)),
)


class TestHeader:
    @pytest.mark.parametrize(
        ("length", "expected"),
        [
            (0, "8200"),
            (125, "827d"),
            (126, "827e007e"),
            (65535, "827effff"),
            (65536, "827f0000000000010000"),
            (2**40, "827f0000010000000000"),
        ],
    )
    def test_the_shortest_form_of_a_length_is_used(self, length: int, expected: str) -> None:
        assert frame_header(Opcode.BINARY, length, mask=False).hex() == expected

    def test_mask_bit_comes_with_key_zero_so_that_the_payload_stays_as_it_is(self) -> None:
        assert frame(Opcode.PING, b"hello", mask=True) == bytes.fromhex("898500000000") + b"hello"

    def test_example_of_rfc_6455_section_5_7(self) -> None:
        frames = decoder(require_mask=True)
        frames.feed(bytes.fromhex("8a8537fa213d7f9f4d5158"))
        assert drain(frames) == [(Opcode.PONG, b"Hello")]


class TestRoundTrip:
    @given(st.lists(any_frame, max_size=8), st.booleans(), st.data())
    def test_frames_survive_any_cutting(
        self, items: list[tuple[Opcode, bytes]], mask: bool, data: st.DataObject
    ) -> None:
        stream = b"".join(frame(opcode, payload, mask=mask) for opcode, payload in items)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
        frames = decoder(require_mask=mask)
        found = []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            frames.feed(stream[start:end])
            found += drain(frames)
        assert found == [(int(opcode), payload) for opcode, payload in items]
        assert frames.buffered_bytes == 0

    def test_splitting_at_every_byte_gives_the_same_frames(self) -> None:
        key = b"\x01\xfe\x80\x33"
        large, small = (Opcode.BINARY, os.urandom(70_000)), (Opcode.BINARY, b"y" * 200)
        items = [large, (Opcode.PING, b"x"), (Opcode.BINARY, b""), small]
        stream = b"".join(masked(opcode, payload, key) for opcode, payload in items)
        expected = [(int(opcode), payload) for opcode, payload in items]
        frames, found = decoder(), []
        for at in range(len(stream)):
            frames.feed(stream[at : at + 1])
            found += drain(frames)
        assert found == expected

    @given(st.binary(min_size=4, max_size=4), st.integers(0, 9000))
    @settings(max_examples=60, deadline=None)
    def test_any_key_is_undone(self, key: bytes, size: int) -> None:
        payload = os.urandom(size)
        frames = decoder()
        frames.feed(masked(Opcode.BINARY, payload, key))
        assert drain(frames) == [(Opcode.BINARY, payload)]

    def test_a_frame_that_is_not_complete_is_none(self) -> None:
        frames = decoder()
        whole = frame(Opcode.BINARY, b"abc", mask=True)
        frames.feed(whole[:-1])
        assert frames.next_frame() is None
        assert frames.buffered_bytes == 2
        frames.feed(whole[-1:] + whole[:1])
        assert frames.next_frame() == (Opcode.BINARY, b"abc")
        assert frames.next_frame() is None
        assert frames.buffered_bytes == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "code"),
        [
            ("c28000000000", 1002),  # RSV1: nobody negotiated compression
            ("a28000000000", 1002),
            ("928000000000", 1002),
            ("838000000000", 1002),  # unknown data opcode
            ("8b8000000000", 1002),  # unknown control opcode
            ("028000000000", 1002),  # FIN missing
            ("808000000000", 1002),  # continuation
            ("098000000000", 1002),  # fragmented ping
            ("8200", 1002),  # a client that does not mask
            ("818000000000", 1003),  # text
            ("89fe007e00000000", 1002),  # ping of 126 bytes
            ("82fe007d00000000", 1002),  # 125 in 16 bits
            ("82ff000000000000ffff00000000", 1002),  # 65535 in 64 bits
            ("82ff800000000000000000000000", 1002),  # the top bit of a 64-bit length
        ],
    )
    def test_what_breaks_the_rfc_is_refused(self, data: str, code: int) -> None:
        assert error_of(bytes.fromhex(data)).code == code

    def test_a_server_that_masks_is_refused(self) -> None:
        frames = decoder(require_mask=False)
        frames.feed(frame(Opcode.BINARY, b"x", mask=True))
        with pytest.raises(WebSocketError) as caught:
            frames.next_frame()
        assert caught.value.code == 1002

    def test_an_announced_size_is_judged_before_any_payload_is_kept(self) -> None:
        header = frame_header(Opcode.BINARY, 2**40, mask=True)
        frames = decoder(max_payload_bytes=1024)
        frames.feed(header[:-4])  # not even the key is there yet
        with pytest.raises(WebSocketError) as caught:
            frames.next_frame()
        assert caught.value.code == 1009
        assert frames.buffered_bytes == 0

    def test_the_limit_itself_is_allowed_and_one_more_is_not(self) -> None:
        frames = decoder(max_payload_bytes=1024)
        frames.feed(frame(Opcode.BINARY, bytes(1024), mask=True))
        assert drain(frames) == [(Opcode.BINARY, bytes(1024))]
        assert error_of(frame(Opcode.BINARY, bytes(1025), mask=True), max_payload_bytes=1024).code == 1009

    def test_the_limit_may_be_raised_later(self) -> None:
        frames = decoder(max_payload_bytes=10)
        frames.feed(frame(Opcode.BINARY, bytes(10), mask=True) + frame(Opcode.BINARY, bytes(11), mask=True))
        assert frames.next_frame() == (Opcode.BINARY, bytes(10))
        frames.max_payload_bytes = 11
        assert frames.next_frame() == (Opcode.BINARY, bytes(11))

    def test_an_error_is_for_good(self) -> None:
        frames = decoder()
        frames.feed(b"\xff\xff")
        for _ in range(2):
            with pytest.raises(WebSocketError):
                frames.next_frame()
        frames.feed(frame(Opcode.BINARY, b"fine", mask=True))
        with pytest.raises(WebSocketError):
            frames.next_frame()

    @given(st.lists(st.binary(max_size=40), max_size=10), st.booleans())
    def test_garbage_raises_websocket_error_or_nothing(self, chunks: list[bytes], require_mask: bool) -> None:
        frames = decoder(max_payload_bytes=64, require_mask=require_mask)
        for chunk in chunks:
            frames.feed(chunk)
            found, error = drain_or_error(frames)
            assert all(opcode in (2, 8, 9, 10) and len(payload) <= 64 for opcode, payload in found)
            if error is not None:
                assert error.code in (1002, 1003, 1009)
                return
            assert frames.buffered_bytes <= 64 + 14

    @given(st.lists(any_frame, min_size=1, max_size=4), st.data())
    def test_one_flipped_bit_raises_websocket_error_or_nothing(
        self, items: list[tuple[Opcode, bytes]], data: st.DataObject
    ) -> None:
        stream = bytearray(b"".join(frame(opcode, payload, mask=True) for opcode, payload in items))
        at = data.draw(st.integers(0, len(stream) * 8 - 1))
        stream[at // 8] ^= 1 << at % 8
        frames = decoder()
        frames.feed(bytes(stream))
        found, error = drain_or_error(frames)
        assert error is None or error.code in (1002, 1003, 1009)
        assert len(found) <= len(items) + 2 or error is not None


class TestClose:
    def test_a_code_and_a_reason_come_back(self) -> None:
        assert parse_close(close_payload(4401, "unauthorized")) == (4401, "unauthorized")
        assert close_payload(4401, "unauthorized").hex() == "1131756e617574686f72697a6564"

    def test_no_payload_is_1005_and_back(self) -> None:
        assert parse_close(b"") == (1005, "")
        assert close_payload(1005) == b""

    @given(st.integers(1000, 4999).filter(lambda code: code != 1005), st.text(max_size=200))
    def test_a_long_reason_is_cut_between_characters(self, code: int, reason: str) -> None:
        payload = close_payload(code, reason)
        assert len(payload) <= 125
        assert payload[2:].decode()[:1] == reason.encode("utf-8", "replace").decode()[:1]

    def test_half_a_code_is_refused(self) -> None:
        with pytest.raises(WebSocketError):
            parse_close(b"\x03")

    def test_a_reason_that_is_not_utf8_does_not_hurt(self) -> None:
        assert parse_close(b"\x03\xe8\xff") == (1000, "\ufffd")


class TestCost:
    def test_time_is_linear_however_small_the_pieces(self) -> None:
        def seconds(size: int) -> float:
            stream = frame(Opcode.BINARY, bytes(size), mask=True)
            frames = decoder(max_payload_bytes=size)
            began = time.perf_counter()
            for at in range(0, len(stream), 256):
                frames.feed(stream[at : at + 256])
                frames.next_frame()
            return time.perf_counter() - began

        small = min(seconds(1 << 19) for _ in range(3))
        large = min(seconds(1 << 22) for _ in range(2))
        assert large < small * 8 * 4  # eight times the bytes; quadratic would be 64 times

    def test_many_small_frames_in_one_piece_are_linear(self) -> None:
        def seconds(count: int) -> float:
            frames = decoder()
            stream = frame(Opcode.BINARY, b"x" * 20, mask=True) * count
            began = time.perf_counter()
            frames.feed(stream)
            assert len(drain(frames)) == count
            return time.perf_counter() - began

        small = min(seconds(1000) for _ in range(3))
        large = min(seconds(16_000) for _ in range(2))
        assert large < small * 16 * 4


def fragment(opcode: int, payload: bytes, *, final: bool = False) -> bytes:
    whole = masked(opcode, payload, b"\x01\xfe\x80\x33")
    return whole if final else bytes([whole[0] & 0x7F]) + whole[1:]


def messages_of(stream: bytes, *, max_message_bytes: int = 1 << 20) -> list[tuple[int, bytes]]:
    decoder = MessageDecoder(max_message_bytes=max_message_bytes)
    decoder.feed(stream)
    return drain(decoder)


def message_error(stream: bytes, max_message_bytes: int = 1 << 20) -> WebSocketError:
    with pytest.raises(WebSocketError) as caught:
        messages_of(stream, max_message_bytes=max_message_bytes)
    return caught.value


class TestMessages:
    @given(
        st.lists(
            st.tuples(st.sampled_from([Opcode.TEXT, Opcode.BINARY]), st.lists(st.binary(max_size=300), min_size=1))
        )
    )
    def test_fragments_become_the_message_that_they_are_of(self, messages: list[tuple[Opcode, list[bytes]]]) -> None:
        stream = b""
        for opcode, (first, *others) in messages:
            pieces = [fragment(opcode, first, final=not others)]
            pieces += [fragment(Opcode.CONTINUATION, other, final=False) for other in others[:-1]]
            pieces += [fragment(Opcode.CONTINUATION, other, final=True) for other in others[-1:]]
            stream += b"".join(pieces)
        assert messages_of(stream) == [(int(opcode), b"".join(pieces)) for opcode, pieces in messages]

    def test_control_frames_come_between_fragments(self) -> None:
        stream = fragment(Opcode.TEXT, b"a") + fragment(Opcode.PING, b"!", final=True)
        stream += fragment(Opcode.CONTINUATION, b"b", final=True)
        assert messages_of(stream) == [(Opcode.PING, b"!"), (Opcode.TEXT, b"ab")]

    def test_size_is_judged_on_the_header_of_the_frame_that_makes_it_too_large(self) -> None:
        announced = fragment(Opcode.BINARY, b"")[:1] + bytes.fromhex("ff0000000040000000")
        assert message_error(announced).code == 1009
        two = fragment(Opcode.TEXT, b"a" * 600)
        more = fragment(Opcode.CONTINUATION, b"b" * 401)
        assert message_error(two + more[:4], 1000).code == 1009
        assert messages_of(two + fragment(Opcode.CONTINUATION, b"b" * 400, final=True), max_message_bytes=1000)

    def test_fragments_without_end_hold_no_more_than_a_message(self) -> None:
        decoder = MessageDecoder(max_message_bytes=1000)
        decoder.feed(fragment(Opcode.TEXT, b"") + fragment(Opcode.CONTINUATION, b"") * 10_000)
        assert decoder.next_frame() is None
        for _ in range(8):
            decoder.feed(fragment(Opcode.CONTINUATION, b"x" * 120))
            assert decoder.next_frame() is None
        decoder.feed(fragment(Opcode.CONTINUATION, b"x" * 120))
        with pytest.raises(WebSocketError) as caught:
            decoder.next_frame()
        assert caught.value.code == 1009

    @pytest.mark.parametrize(
        "stream",
        [
            fragment(Opcode.CONTINUATION, b"of nothing", final=True),
            fragment(Opcode.TEXT, b"a") + fragment(Opcode.BINARY, b"b"),
            fragment(Opcode.TEXT, b"a") + fragment(Opcode.TEXT, b"b", final=True),
            fragment(Opcode.PING, b"a"),
            frame(Opcode.TEXT, b"not masked", mask=False),
            b"\xc1\x80\x00\x00\x00\x00",
            b"\x83\x80\x00\x00\x00\x00",
        ],
    )
    def test_what_breaks_the_rules_is_refused(self, stream: bytes) -> None:
        assert message_error(stream).code == 1002

    @given(st.binary(max_size=200), st.data())
    def test_nothing_but_websocket_errors_comes_out_of_garbage(self, garbage: bytes, data: st.DataObject) -> None:
        decoder = MessageDecoder(max_message_bytes=data.draw(st.integers(0, 300)))
        decoder.feed(garbage)
        drain_or_error(decoder)
