"""How long a sender waits for a peer that is behind.

A loop that emits faster than a healthy peer can take it must be slowed down, or the peer would be cut as a slow
consumer although nothing is wrong with it. A peer that hardly moves must not slow anybody down. `Patience` tells the
two apart: waiting spends it, what the peer takes earns it back.
"""

from __future__ import annotations

__all__ = ["Patience"]


class Patience:
    """The patience that this node has with one peer.

    Args:
        seconds: how long senders wait for a peer that acknowledges nothing, in total.
        bytes_per_second: the pace at which a peer earns all waiting back, so that it is waited for without end.
    """

    def __init__(self, *, seconds: float = 0.25, bytes_per_second: int = 128 * 1024) -> None:
        self._full = seconds
        self._left = seconds
        self._bytes_per_second = bytes_per_second
        self._charged_until = 0.0
        self._progress_bytes = 0

    def spend(self, since: float, now: float) -> None:
        """A sender has waited. However many wait at the same time, a second costs a second."""
        self._left -= max(0.0, now - max(since, self._charged_until))
        self._charged_until = max(now, self._charged_until)

    def earn(self, progress_bytes: int) -> None:
        """The peer has taken this much in all; a smaller figure than before means that a new count has begun."""
        earned = max(0, progress_bytes - self._progress_bytes)
        self._left = min(self._full, self._left + earned / self._bytes_per_second)
        self._progress_bytes = progress_bytes

    @property
    def is_left(self) -> bool:
        """Whether to wait for this peer at all."""
        return self._left > 0
