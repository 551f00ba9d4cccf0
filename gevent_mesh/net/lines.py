"""Log lines that others can cause: at most one a second, and it says how many were left out."""

from __future__ import annotations

__all__ = ["LinesPerSecond"]


class LinesPerSecond:
    """Lets one line a second through and counts the others."""

    def __init__(self) -> None:
        self._next = float("-inf")
        self._suppressed = 0

    def next(self, now: float) -> str | None:
        """What to add to a line that may be written now, or None when this one is to be left out."""
        if now < self._next:
            self._suppressed += 1
            return None
        suppressed, self._suppressed, self._next = self._suppressed, 0, now + 1.0
        return f" (and {suppressed} more since the last such line)" if suppressed else ""
