"""Values that JavaScript and Python see differently, in both directions."""

from __future__ import annotations

import math
from typing import Any

import msgpack

from ...errors import MessageError

__all__ = ["MAX_DEPTH", "NOBODY", "date_text", "from_node", "to_node"]

MAX_DEPTH = 100
"""Maps and arrays within each other. Node refuses to write deeper values, and Python could not follow much deeper."""

_MAX_INTEGER = (1 << 64) - 1
_MIN_INTEGER = -(1 << 63)
_MAX_DATE_MS = 8_640_000_000_000_000
_DAY_MS = 86_400_000


class _Nobody:
    """See `NOBODY`."""

    def __repr__(self) -> str:
        return "<no room>"


NOBODY = _Nobody()
"""A room that no client is in. JavaScript's null is such a room; to python-socketio None is everybody."""

_LEAVES = frozenset((str, int, bool, bytes, type(None)))


def from_node(value: Any, *, finite: bool = False, depth: int = MAX_DEPTH) -> Any:
    """Turn a decoded value of a Node peer into what Python programs, and their clients, can use.

    Dates become the text that ``JSON.stringify`` writes, integer keys become text, extensions ``{type, data}``.

    Args:
        value: out of msgpack.
        finite: make None of NaN and infinities, as ``JSON.stringify`` does: browsers cannot read them in JSON.
        depth: how many levels of arrays and maps are allowed.

    Raises:
        MessageError: nested too deep, or a key that no JavaScript object can have.
    """
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is float:
        return value if not finite or math.isfinite(value) else None
    if not depth:
        raise MessageError(f"a value is nested deeper than {MAX_DEPTH} levels")
    if kind is list:
        return [item if type(item) in _LEAVES else from_node(item, finite=finite, depth=depth - 1) for item in value]
    if kind is dict:
        return {_their_key(key): from_node(item, finite=finite, depth=depth - 1) for key, item in value.items()}
    if kind is msgpack.Timestamp:
        return date_text(value.seconds, value.nanoseconds)
    return {"type": value.code, "data": value.data}


def _their_key(key: object) -> str:
    if type(key) is str:
        return key
    if type(key) is int:
        return str(key)
    raise MessageError(f"a key cannot be {type(key).__name__}")


def date_text(seconds: int, nanoseconds: int) -> str | None:
    """The text of a JavaScript date (`Date.prototype.toISOString`); None for one that JavaScript cannot hold."""
    nanos = seconds * 1_000_000_000 + nanoseconds
    ms = abs(nanos) // 1_000_000 * (1 if nanos >= 0 else -1)
    if abs(ms) > _MAX_DATE_MS:
        return None
    days, rest = divmod(ms, _DAY_MS)
    year, month, day = _civil(days)
    minutes, ms = divmod(rest, 60_000)
    # Years with more or less than four digits get a sign and six.
    date = f"{year:04d}" if 0 <= year <= 9999 else f"{'-' if year < 0 else '+'}{abs(year):06d}"
    return f"{date}-{month:02d}-{day:02d}T{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d}.{ms % 1000:03d}Z"


def _civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of a day since 1970, in the Gregorian calendar without end (Python's begins with year 1)."""
    # Eras of 400 years, all of the same length, and years that begin in March: the leap day is a year's last.
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    march_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * march_month + 2) // 5 + 1
    month = march_month + 3 if march_month < 10 else march_month - 9
    return year_of_era + era * 400 + (month <= 2), month, day


def to_node(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Turn a value of ours into one that a Node process can read.

    Keys become text as in JSON, entries named ``__proto__`` are left out (Node drops a message that has one), integers
    beyond 64 bits become floats, as they do when a browser reads them in JSON, and extensions ``{type, data}``.

    Raises:
        MessageError: nested too deep.
    """
    kind = type(value)
    if kind is int:
        return value if _MIN_INTEGER <= value <= _MAX_INTEGER else _float(value)
    if kind in _LEAVES or kind is float:
        return value
    if kind in (list, tuple, dict) and not depth:
        raise MessageError(f"a value is nested deeper than {MAX_DEPTH} levels")
    if kind is dict:
        texts = ((_our_key(key), item) for key, item in value.items())
        return {key: to_node(item, depth - 1) for key, item in texts if key != "__proto__"}
    if kind is list or kind is tuple:
        return [to_node(item, depth - 1) for item in value]
    if kind is msgpack.ExtType:
        return {"type": value.code, "data": value.data}
    return value


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _our_key(key: object) -> str:
    """The key as JSON writes it; JSON has no form for the last ones."""
    if type(key) is str:
        return key
    if key is None or type(key) is bool:
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    return repr(key)
