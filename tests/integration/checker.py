"""Counts events that carry their sender and a number: what was lost, what came twice, what came out of order."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Checker", "Report"]


@dataclass(frozen=True, slots=True)
class Report:
    """What one receiver saw, summed over all senders.

    Attributes:
        missing: numbers up to what each sender says it sent that never came.
        doubled: events that had come before.
        late: events that came after a higher number of the same sender.
    """

    received: int
    missing: int
    doubled: int
    late: int

    @property
    def is_perfect(self) -> bool:
        return not (self.missing or self.doubled or self.late)


@dataclass(slots=True)
class _Sender:
    seen: set[int] = field(default_factory=set)
    highest: int = 0
    doubled: int = 0
    late: int = 0


class Checker:
    """One receiver's account. Fed by a client's thread, read by a test's."""

    def __init__(self) -> None:
        self._senders: dict[str, _Sender] = {}
        self._lock = threading.Lock()

    def take(self, sender: str, number: int) -> None:
        """An event has come."""
        with self._lock:
            account = self._senders.setdefault(sender, _Sender())
            if number in account.seen:
                account.doubled += 1
            elif number < account.highest:
                account.late += 1
            account.seen.add(number)
            account.highest = max(account.highest, number)

    def received(self, sender: str) -> int:
        """How many different events of one sender have come."""
        with self._lock:
            account = self._senders.get(sender)
            return 0 if account is None else len(account.seen)

    def highest(self, sender: str) -> int:
        """The highest number of one sender."""
        with self._lock:
            account = self._senders.get(sender)
            return 0 if account is None else account.highest

    def lowest(self, sender: str) -> int:
        """The lowest number of one sender."""
        with self._lock:
            account = self._senders.get(sender)
            return 0 if account is None else min(account.seen)

    def report(self, sent: Mapping[str, int], first: Mapping[str, int] | None = None) -> Report:
        """Compare with what the senders say.

        Args:
            sent: the last number of each sender that is judged.
            first: numbers below these are not asked for: the receiver was not there yet.
        """
        with self._lock:
            missing = 0
            for sender, last in sent.items():
                wanted = range((first or {}).get(sender, 1), last + 1)
                seen = self._senders.get(sender, _Sender()).seen
                missing += sum(number not in seen for number in wanted)
            judged = [account for sender, account in self._senders.items() if sender in sent]
            return Report(
                received=sum(len(account.seen) for account in judged),
                missing=missing,
                doubled=sum(account.doubled for account in judged),
                late=sum(account.late for account in judged),
            )
