"""Reading msgpack that somebody else has written: what it may cost us is bounded by what it cost them.

Rules:

- Announced is not sent: msgpack makes room for all the items that a header announces, at every level of nesting. So
  each value is skipped first, which builds nothing and shows whether all of it is there.
- A byte on the wire may be 72 in Python (a map without pairs in an array), three bytes 240. Small values cannot hold
  many such; in larger ones the values are counted while they are built, and there is a limit (`MAX_VALUES`).
- The sender counts by the same rule (`count_values`), so that nobody sends what others refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack

from ..errors import FrameError, MessageError

__all__ = [
    "DECODE",
    "FREE_BYTES",
    "MAX_VALUES",
    "TOO_MANY_VALUES",
    "UNREADABLE",
    "Budget",
    "check_whole",
    "count_values",
    "read",
    "read_all",
]

DECODE: dict[str, Any] = {"raw": False, "strict_map_key": False, "timestamp": 1}
"""How msgpack reads messages. Timestamps become numbers: as objects they could be keys of maps, whose hashes a peer
could choose to be all the same."""
MAX_VALUES = 32_768
"""Numbers, texts, arrays, maps and so on in one message: at most 3 MiB besides what the texts themselves take."""
FREE_BYTES = 32 * 1024
"""What is not larger than this is not counted: it cannot take more than 2.5 MiB."""
TINY_BYTES = 512
"""What is not larger than this is not skipped first: msgpack makes no room for more items than there are bytes, and so
for 0.7 MiB at the most."""
TOO_MANY_VALUES = object()
"""Stands for a message that holds more than `MAX_VALUES`."""

UNREADABLE = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)
"""What msgpack raises: several unrelated classes. TypeError: a key of a map that cannot be hashed."""


class Budget:
    """Counts the values that msgpack builds, and stops it.

    Args:
        max_values: how many there may be.

    Attributes:
        taken: how many there were.
    """

    def __init__(self, max_values: int) -> None:
        self.max_values = max_values
        self.taken = 0

    def hooks(self, how: dict[str, Any]) -> dict[str, Any]:
        """Options of msgpack, and what makes it count."""
        pairs_hook = how.get("object_pairs_hook")
        if pairs_hook is None:
            return {**how, "list_hook": self._take_list, "object_hook": self._take_map}

        def take_pairs(pairs: list[tuple[Any, Any]]) -> Any:
            self._take(2 * len(pairs))
            return pairs_hook(pairs)

        return {**how, "list_hook": self._take_list, "object_pairs_hook": take_pairs}

    def _take_list(self, items: list[Any]) -> list[Any]:
        self._take(len(items))
        return items

    def _take_map(self, found: dict[Any, Any]) -> dict[Any, Any]:
        self._take(2 * len(found))
        return found

    def _take(self, values: int) -> None:
        self.taken += values
        if self.taken > self.max_values:
            raise ValueError(f"more than {self.max_values} values")


def check_whole(data: bytes | memoryview) -> None:
    """See that there is one value, and all of it.

    Raises:
        MessageError: it is cut off, or something follows, or it is no msgpack.
    """
    scout = _unpacker(data)
    try:
        scout.skip()
    except UNREADABLE as exc:
        raise MessageError(f"undecodable: {type(exc).__name__}") from exc
    if scout.tell() != len(data):
        raise MessageError("undecodable: something follows")


def read(data: bytes | memoryview, *, max_values: int = MAX_VALUES, **how: Any) -> Any:
    """Read one value.

    Args:
        max_values: see `MAX_VALUES`.
        how: options of msgpack.

    Raises:
        MessageError: it is malformed, or there are too many values in it.
    """
    if len(data) > TINY_BYTES:
        check_whole(data)
    try:
        return _build(data, max_values, how)
    except UNREADABLE as exc:
        raise MessageError(f"undecodable: {type(exc).__name__}: {exc}") from exc


def read_all(data: bytes | memoryview) -> Iterator[Any]:
    """Read messages that stand end to end, one at a time; `TOO_MANY_VALUES` in the place of one that has too many.

    Raises:
        FrameError: one is malformed, or the last one is cut off.
    """
    scout, builder = _unpacker(data), _unpacker(data, **DECODE)
    begin = 0
    try:
        while begin < len(data):
            scout.skip()
            end = scout.tell()
            if end - begin <= FREE_BYTES:
                value = builder.unpack()
            else:
                builder.skip()
                value = _large(data[begin:end])
            begin = end
            yield value
    except msgpack.OutOfData as exc:
        raise FrameError("the last message of a BATCH is cut off") from exc
    except UNREADABLE as exc:
        raise FrameError(f"undecodable messages in a BATCH: {type(exc).__name__}: {exc}") from exc


def count_values(data: bytes) -> None:
    """See that a message of ours does not hold more values than others take.

    Raises:
        ValueError: it does.
    """
    if len(data) > FREE_BYTES and _large(data) is TOO_MANY_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values in one message; send them in pieces, or as one text or bytes")


def _large(data: bytes | memoryview) -> Any:
    try:
        return _build(data, MAX_VALUES, DECODE)
    except ValueError as exc:
        # Limits raise this very class, and everything else a class of its own.
        if type(exc) is not ValueError:
            raise
        return TOO_MANY_VALUES


def _build(data: bytes | memoryview, max_values: int, how: dict[str, Any]) -> Any:
    if len(data) <= FREE_BYTES:
        return msgpack.unpackb(data, **how)
    limits = {"max_array_len": max_values, "max_map_len": max_values}
    return msgpack.unpackb(data, **{**limits, **Budget(max_values).hooks(how)})


def _unpacker(data: bytes | memoryview, **how: Any) -> Any:
    unpacker = msgpack.Unpacker(**how, max_buffer_size=len(data), read_size=max(1, len(data)))
    unpacker.feed(data)
    return unpacker
