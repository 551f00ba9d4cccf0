"""Values of msgpack that want to be more than they are."""

from __future__ import annotations

import struct

from gevent_mesh.protocol.unpacking import FREE_BYTES

__all__ = ["bombs"]

_U32 = struct.Struct("!I")


def array(count: int) -> bytes:
    return b"\xdd" + _U32.pack(count)


def bombs(count: int) -> dict[str, bytes]:
    """Some of about so many items."""
    keys = (_U32.pack(n) for n in range(count))
    return {
        "announced": array(2**32 - 1),
        "announced at every level": array(min(count, 60_000)) * 1000,
        "empty maps in an array": array(count) + b"\x80" * count,
        "small maps in an array": array(count) + b"\x81\x01\x01" * count,
        "short texts in an array": array(count) + b"\xa2ab" * count,
        "arrays of arrays of maps": array(count // 1000) + (array(1000) + b"\x80" * 1000) * (count // 1000),
        "a map of maps": b"\xdf" + _U32.pack(count) + b"".join(b"\xce" + key + b"\x80" for key in keys),
        "small enough not to be counted": array(FREE_BYTES - 5) + b"\x80" * (FREE_BYTES - 5),
        "small maps, not counted": array(FREE_BYTES // 3 - 5) + b"\x81\x01\x01" * (FREE_BYTES // 3 - 5),
        "deep": b"\x91" * 100_000 + b"\x01",
    }
