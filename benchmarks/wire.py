"""The little of WebSocket, Engine.IO and Socket.IO that a counting client needs. No input or output.

An event on the wire is ``42["tick",NUMBER,TIME,"padding"]`` in one text frame: numbers from 0 without a gap, the time
of emission in nanoseconds of the monotonic clock. ``42["end",COUNT]`` says how many there were.
"""

from __future__ import annotations

import struct

__all__ = ["EVENT_BYTES", "TICK", "Sequence", "frame", "padding", "texts"]

TICK = b'42["tick",'
EVENT_BYTES = 110

_TEXT = 0x1
_CLOSE = 0x8


def padding() -> str:
    """What fills an event up to about `EVENT_BYTES` on the wire."""
    bare = TICK + b'123456,123456789012345,""]'
    return "x" * (EVENT_BYTES - len(bare))


def frame(text: bytes) -> bytes:
    """A client's text frame, masked with a key of zeros (RFC 6455, section 5.3); up to 125 bytes."""
    return bytes([0x80 | _TEXT, 0x80 | len(text), 0, 0, 0, 0]) + text


def texts(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Take the whole text frames off a server's bytes.

    Returns:
        Their payloads, and the bytes of a frame that has not come whole.

    Raises:
        ConnectionError: the server closed the connection.
    """
    payloads = []
    at, end = 0, len(buffer)
    while end - at >= 2:
        length, start = buffer[at + 1], at + 2
        if length == 126:
            start += 2
            if start > end:
                break
            (length,) = struct.unpack_from(">H", buffer, start - 2)
        elif length == 127:
            start += 8
            if start > end:
                break
            (length,) = struct.unpack_from(">Q", buffer, start - 8)
        if start + length > end:
            break
        opcode = buffer[at] & 0x0F
        if opcode == _CLOSE:
            raise ConnectionError("the server closed the WebSocket")
        if opcode == _TEXT:
            payloads.append(buffer[start : start + length])
        at = start + length
    return payloads, buffer[at:]


class Sequence:
    """Counts numbered events, and what is wrong with their order.

    Attributes:
        received: different numbers that came.
        doubled: repeats of a number that had come before.
        late: numbers that came after a higher one.
    """

    def __init__(self) -> None:
        self.received = 0
        self.doubled = 0
        self.late = 0
        self._next = 0
        self._missing: set[int] = set()

    def add(self, number: int) -> None:
        """One event has come."""
        if number == self._next:
            self._next += 1
            self.received += 1
        elif number > self._next:
            self._missing.update(range(self._next, number))
            self._next = number + 1
            self.received += 1
        elif number in self._missing:
            self._missing.remove(number)
            self.late += 1
            self.received += 1
        else:
            self.doubled += 1
