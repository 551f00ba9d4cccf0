"""The frames of RFC 6455 that the mesh uses: bytes in, (opcode, payload) out, and back.

Rules:

- Between nodes one WebSocket message is one frame. Fragments, extensions and text are refused: no peer of ours needs
  them, and each would be one more thing whose size has to be bounded. Browsers send both: `MessageDecoder`.
- A length is judged on the header, before a byte of the payload is kept: announcing 2^40 bytes costs the sender its
  connection and us nothing.
- What is wrong raises `WebSocketError` and nothing else, and a decoder that raised once raises for good: behind a
  broken frame there is no place at which to go on.
- The time taken is linear in the bytes fed, however they are cut into pieces.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from functools import cache
from typing import NamedTuple

from ..errors import WebSocketError

__all__ = ["FrameDecoder", "MessageDecoder", "Opcode", "close_payload", "frame", "frame_header", "parse_close"]


class Opcode(IntEnum):
    """What a frame is (RFC 6455, section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


_FIN = 0x80
_RESERVED = 0x70
_OPCODE = 0x0F
_MASKED = 0x80
_LENGTH = 0x7F
_LENGTH_16 = 126
_LENGTH_64 = 127

_MAX_CONTROL_BYTES = 125
_KEY_BYTES = 4
_NO_KEY = bytes(_KEY_BYTES)

_U16 = struct.Struct("!H")
_U64 = struct.Struct("!Q")

#: Up to here one big-integer XOR beats four `translate` runs; measured on CPython 3.11, the two meet at about 5 KiB.
_XOR_BYTES = 4096

_PROTOCOL_ERROR = 1002
_UNSUPPORTED_DATA = 1003
_NO_STATUS = 1005
_TOO_BIG = 1009


def frame_header(opcode: int, length: int, *, mask: bool) -> bytes:
    """Build the header of an unfragmented frame.

    Args:
        opcode: one of `Opcode`.
        length: bytes of payload that follow.
        mask: set the mask bit, with key 0: the payload that follows is sent as it is. RFC 6455 wants random keys
            because hostile browser content could otherwise choose the bytes on the wire; both ends here are servers.
    """
    bit = _MASKED if mask else 0
    if length < _LENGTH_16:
        head = bytes((_FIN | opcode, bit | length))
    elif length <= 0xFFFF:
        head = bytes((_FIN | opcode, bit | _LENGTH_16)) + _U16.pack(length)
    else:
        head = bytes((_FIN | opcode, bit | _LENGTH_64)) + _U64.pack(length)
    return head + _NO_KEY if mask else head


def frame(opcode: int, payload: bytes, *, mask: bool) -> bytes:
    """Build a whole frame; see `frame_header`."""
    return frame_header(opcode, len(payload), mask=mask) + payload


def close_payload(code: int, reason: str = "") -> bytes:
    """Build the payload of a CLOSE frame; the reason is cut to what a control frame can hold.

    Args:
        code: RFC 6455 section 7.4. 1005 means "no code" and yields an empty payload.
        reason: for people; never a secret.
    """
    if code == _NO_STATUS:
        return b""
    text = reason.encode("utf-8", "replace")[: _MAX_CONTROL_BYTES - 2]
    # A cut may go through a character, and a reason must be UTF-8 (section 5.5.1).
    return _U16.pack(code) + text.decode("utf-8", "ignore").encode()


def parse_close(payload: bytes) -> tuple[int, str]:
    """Read the payload of a CLOSE frame.

    Returns:
        The code and the reason; (1005, "") when the frame is empty. A reason that is not UTF-8 is read with replacement
        characters: the connection is ending anyway, and the rest of the text may help somebody.

    Raises:
        WebSocketError: the payload is a single byte.
    """
    if not payload:
        return _NO_STATUS, ""
    if len(payload) < 2:
        raise WebSocketError(_PROTOCOL_ERROR, "a close frame with half a code")
    return _U16.unpack_from(payload)[0], payload[2:].decode("utf-8", "replace")


class _Header(NamedTuple):
    is_final: bool
    opcode: int
    length: int
    key: bytes


class FrameDecoder:
    """Turns a byte stream into frames, within limits.

    Call `feed`, then `next_frame` until it returns None. Between two such rounds the decoder holds less than one frame.

    Args:
        max_payload_bytes: larger announcements are refused with 1009.
        require_mask: True where the other side is the WebSocket client (clients must mask), False where it is the
            server (which must not); RFC 6455, section 5.1.
    """

    def __init__(self, *, max_payload_bytes: int, require_mask: bool) -> None:
        #: May be raised once the other side has proved who it is; applies from the next header on.
        self.max_payload_bytes = max_payload_bytes
        self._require_mask = require_mask
        self._buffer = bytearray()
        self._start = 0
        self._header: _Header | None = None
        self._error: WebSocketError | None = None

    @property
    def buffered_bytes(self) -> int:
        """The bytes that were fed and are not yet part of a returned frame."""
        return len(self._buffer) - self._start

    def feed(self, data: bytes) -> None:
        """Take what the socket gave."""
        if self._start:
            # Deleting at the front of a bytearray moves its start, not its content: this is not quadratic.
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_frame(self) -> tuple[int, bytes] | None:
        """Take the next whole frame.

        Returns:
            The opcode and the unmasked payload, or None when more data is needed.

        Raises:
            WebSocketError: 1002 the frame breaks RFC 6455 or is a fragment, 1003 it is text, 1009 it is too large.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._next_frame()
        except WebSocketError as error:
            self._error = error
            self._buffer.clear()
            self._start = 0
            raise

    def _next_frame(self) -> tuple[int, bytes] | None:
        found = self._take_frame()
        return None if found is None else (found[0].opcode, found[1])

    def _take_frame(self) -> tuple[_Header, bytes] | None:
        header = self._header = self._header or self._take_header()
        if header is None or self.buffered_bytes < header.length:
            return None
        self._header = None
        return header, _unmask(self._take(header.length), header.key)

    def _take_header(self) -> _Header | None:
        if self.buffered_bytes < 2:
            return None
        first, second = self._buffer[self._start], self._buffer[self._start + 1]
        self._check_first_bytes(first, second)
        short = second & _LENGTH
        length_bytes = {_LENGTH_16: 2, _LENGTH_64: 8}.get(short, 0)
        key_bytes = _KEY_BYTES if second & _MASKED else 0
        if self.buffered_bytes < 2 + length_bytes:
            return None
        length = self._length(short)
        self._check_length(first & _OPCODE, length)
        if self.buffered_bytes < 2 + length_bytes + key_bytes:
            return None
        self._start += 2 + length_bytes
        return _Header(bool(first & _FIN), first & _OPCODE, length, self._take(key_bytes))

    def _check_first_bytes(self, first: int, second: int) -> None:
        opcode = first & _OPCODE
        if first & _RESERVED:
            raise WebSocketError(_PROTOCOL_ERROR, "reserved bits are set")
        if opcode not in _KNOWN:
            raise WebSocketError(_PROTOCOL_ERROR, f"unknown opcode {opcode}")
        self._check_kind(bool(first & _FIN), opcode)
        if bool(second & _MASKED) is not self._require_mask:
            raise WebSocketError(_PROTOCOL_ERROR, "frame not masked" if self._require_mask else "frame masked")
        if opcode >= Opcode.CLOSE and second & _LENGTH > _MAX_CONTROL_BYTES:
            raise WebSocketError(_PROTOCOL_ERROR, "a control frame is too large")

    def _check_kind(self, is_final: bool, opcode: int) -> None:
        if not is_final or opcode == Opcode.CONTINUATION:
            raise WebSocketError(_PROTOCOL_ERROR, "fragments are not supported")
        if opcode == Opcode.TEXT:
            raise WebSocketError(_UNSUPPORTED_DATA, "text frames are not supported")

    def _check_length(self, _opcode: int, length: int) -> None:
        if length > self.max_payload_bytes:
            raise WebSocketError(_TOO_BIG, f"a frame of {length} bytes, more than {self.max_payload_bytes}")

    def _length(self, short: int) -> int:
        at = self._start + 2
        if short < _LENGTH_16:
            return short
        form, minimum = (_U16, _LENGTH_16) if short == _LENGTH_16 else (_U64, 0x10000)
        length: int = form.unpack_from(self._buffer, at)[0]
        # Section 5.2: "the minimal number of bytes MUST be used".
        if length < minimum or length >> 63:
            raise WebSocketError(_PROTOCOL_ERROR, "a length in the wrong form")
        return length

    def _take(self, size: int) -> bytes:
        end = self._start + size
        with memoryview(self._buffer) as view:
            taken = bytes(view[self._start : end])
        self._start = end
        if end == len(self._buffer):
            # Now, and not with the next bytes: a large frame would be kept twice until those come.
            self._buffer.clear()
            self._start = 0
        return taken


_KNOWN = frozenset(Opcode)


class MessageDecoder(FrameDecoder):
    """The same for a server whose clients are browsers: text is taken, and messages may come in fragments.

    `next_frame` returns control frames, which may come between two fragments, and whole messages under the opcode that
    they began with. Of a message in fragments no more is held than of one in a single frame.

    Args:
        max_message_bytes: a frame that would make its message larger is refused with 1009, on its header.
    """

    def __init__(self, *, max_message_bytes: int) -> None:
        super().__init__(max_payload_bytes=max_message_bytes, require_mask=True)
        self._begun: int | None = None
        self._fragments = bytearray()

    def _next_frame(self) -> tuple[int, bytes] | None:
        while (found := self._take_frame()) is not None:
            header, payload = found
            if header.opcode >= Opcode.CLOSE or (header.is_final and self._begun is None):
                return header.opcode, payload
            self._begun = header.opcode if self._begun is None else self._begun
            self._fragments += payload
            if header.is_final:
                return self._finished(self._begun)
        return None

    def _finished(self, opcode: int) -> tuple[int, bytes]:
        message = bytes(self._fragments)
        self._begun, self._fragments = None, bytearray()
        return opcode, message

    def _check_kind(self, is_final: bool, opcode: int) -> None:
        if opcode >= Opcode.CLOSE:
            if not is_final:
                raise WebSocketError(_PROTOCOL_ERROR, "a control frame in fragments")
        elif (opcode == Opcode.CONTINUATION) is (self._begun is None):
            what = "a fragment of nothing" if self._begun is None else "a new message inside of another"
            raise WebSocketError(_PROTOCOL_ERROR, what)

    def _check_length(self, opcode: int, length: int) -> None:
        whole = length if opcode >= Opcode.CLOSE else length + len(self._fragments)
        if whole > self.max_payload_bytes:
            raise WebSocketError(_TOO_BIG, f"a message of {whole} bytes or more, the limit is {self.max_payload_bytes}")


def _unmask(payload: bytes, key: bytes) -> bytes:
    if not key or key == _NO_KEY:
        return payload
    if len(payload) <= _XOR_BYTES:
        return _xor(payload, key)
    return _translate(payload, key)


def _xor(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    mask = (key * (size // _KEY_BYTES + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")


def _translate(payload: bytes, key: bytes) -> bytes:
    plain = bytearray(len(payload))
    for offset in range(_KEY_BYTES):
        plain[offset::_KEY_BYTES] = payload[offset::_KEY_BYTES].translate(_table(key[offset]))
    return bytes(plain)


@cache
def _table(byte: int) -> bytes:
    return bytes(value ^ byte for value in range(256))
