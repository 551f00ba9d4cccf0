"""What others can make us log as often as they like is told once a second, and counted."""

from __future__ import annotations

__all__ = ["LinesPerSecond"]


class LinesPerSecond:
    """Lets one line a second through and counts the others."""

    def __init__(self) -> None:
        self._next = float("-inf")
        self._suppressed = 0

    def next(self, now: float) -> int | None:
        """The number of lines suppressed since the last one, or None when this one is to be suppressed."""
        if now < self._next:
            self._suppressed += 1
            return None
        suppressed, self._suppressed, self._next = self._suppressed, 0, now + 1.0
        return suppressed
