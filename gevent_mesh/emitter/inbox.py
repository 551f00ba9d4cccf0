"""The inbox: what publishers leave for the network thread.

Rules:

- Any thread, greenlet or signal handler may leave something, also one that has interrupted another in the middle of it:
  nobody holds a lock. Each step is one operation of a `deque`, which Python does as a whole.
- Only the network thread takes out and numbers. What one thread leaves is taken out in that order.
- Nothing is taken out behind the last mark: who left it there finds it, and takes it back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Inbox", "Item", "Mark"]


@dataclass(slots=True, eq=False)
class Item:
    """A message that is not numbered yet."""

    packed: bytes
    size_bytes: int


@dataclass(slots=True, eq=False)
class Mark:
    """A place between two messages.

    Attributes:
        is_last: nothing is taken out behind it.
        number: what the next message behind it will be numbered; None until the network thread has come to it.
    """

    is_last: bool = False
    number: int | None = None


class Inbox:
    """A queue of messages and marks.

    Attributes:
        size_bytes: about how much is in it. Publishers that come at the same moment may miss each other; it is right
            again whenever the inbox is empty.
    """

    def __init__(self) -> None:
        self._waiting: deque[Item | Mark] = deque()
        self._is_draining = False
        self._is_over = False
        self.size_bytes = 0

    # ------------------------------------------------------------------ publishers

    def leave(self, item: Item) -> None:
        """Leave a message."""
        self._waiting.append(item)
        self.size_bytes += item.size_bytes

    def take_back(self, item: Item) -> bool:
        """Take a message back. Returns False when the network thread has it already."""
        try:
            self._waiting.remove(item)
        except ValueError:
            return False
        return True

    def mark(self, *, is_last: bool = False) -> Mark:
        """Mark the end of what has been left until now."""
        mark = Mark(is_last)
        self._waiting.append(mark)
        return mark

    @property
    def is_empty(self) -> bool:
        """Whether all is out of it, and the network thread is done with it."""
        # In this order: what is not waiting any more is being drained, or has been.
        return not self._waiting and not self._is_draining

    def __len__(self) -> int:
        """How many messages wait in front of the last mark."""
        count = 0
        for entry in self._waiting.copy():
            if isinstance(entry, Item):
                count += 1
            elif entry.is_last:
                break
        return count

    # ------------------------------------------------------------------ the network thread

    def drain(self) -> Iterator[Item | Mark]:
        """Take out what is there now. What publishers add meanwhile comes next time: others want their turn."""
        self._is_draining = True
        try:
            for _ in range(len(self._waiting)):
                if self._is_over or not self._waiting:
                    return
                entry = self._waiting.popleft()
                if isinstance(entry, Mark):
                    self._is_over = entry.is_last
                else:
                    self.size_bytes = max(0, self.size_bytes - entry.size_bytes)
                yield entry
            if not self._waiting:
                self.size_bytes = 0
        finally:
            self._is_draining = False
