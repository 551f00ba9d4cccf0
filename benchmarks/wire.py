"""The little of WebSocket, Engine.IO and Socket.IO that a counting client needs. No input or output.

An event on the wire is ``42["tick",NUMBER,TIME,"padding"]`` in one text frame: numbers from 0 without a gap, the time
of emission in nanoseconds of the monotonic clock. ``42["end",COUNT]`` says how many there were. An event that is not
for all clients is a ``part`` instead of a ``tick``, and its number is negative.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

__all__ = ["EVENT_BYTES", "PART", "TICK", "Audience", "Member", "Sequence", "frame", "padding", "texts"]

TICK = b'42["tick",'
PART = b'42["part",'
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


class Member:
    """One client of an `Audience`: since when it is in, and the last number that it had."""

    __slots__ = ("last", "since")

    def __init__(self, since_ns: int) -> None:
        self.since = since_ns
        self.last = -1


class Audience:
    """What many clients had of one series of events, some of which they came too late for.

    Attributes:
        dropped: clients that the server hung up on.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._emitted: dict[int, int] = {}
        self._delays: dict[int, list[int]] = {}
        self._newest = -1
        self._lost = 0
        self._doubled = 0

    def add(self, member: Member, number: int, emitted_ns: int, now_ns: int) -> None:
        """One client has had one event. A negative number is of none that all should have."""
        self._delays.setdefault(number, []).append(now_ns - emitted_ns)
        if number < 0:
            return
        self._emitted[number] = emitted_ns
        self._newest = max(self._newest, number)
        if number <= member.last:
            self._doubled += 1
            return
        self._lost += self._due(member, number - 1)
        member.last = number

    def _due(self, member: Member, up_to: int) -> int:
        """How many a client should have had beyond its last one: those that were emitted when it was in."""
        # Of an event that nobody had there is no time; whoever had one before it should have had it as well.
        unknown = member.since + 1 if member.last >= 0 else 0
        return sum(self._emitted.get(number, unknown) > member.since for number in range(member.last + 1, up_to + 1))

    def have(self, number: int, clients: int) -> bool:
        """Whether it is worth to look: so many times has it been had."""
        return self._newest >= number and len(self._delays.get(number, ())) >= clients // 2

    def all_have(self, number: int, members: Iterable[Member]) -> bool:
        """Whether each of them has had an event, or came after it."""
        return all(member.last >= number or self._emitted[number] <= member.since for member in members)

    def tally(self, members: Iterable[Member]) -> dict[str, Any]:
        """What there was since the last time.

        Args:
            members: those who are still there. What they did not get of the series so far counts as lost.

        Returns:
            ``lost``, ``doubled`` and ``dropped``, and ``delays_us``: for each number, from emission to each client.
        """
        for member in members:
            self._lost += self._due(member, self._newest)
            member.last = self._newest
        told = {
            "lost": self._lost,
            "doubled": self._doubled,
            "dropped": self.dropped,
            "delays_us": {number: [delay // 1000 for delay in delays] for number, delays in self._delays.items()},
        }
        self._lost = self._doubled = self.dropped = 0
        self._delays = {}
        return told
