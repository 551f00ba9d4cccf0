"""Counts events that carry their sender and a number: what was lost, what came twice, what came out of order.

`Checker` is one client's account. `violations` judges a whole mesh, afterwards, by the accounts of all its nodes.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Account", "Checker", "Report", "SessionAccount", "Stream", "violations"]


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
class Stream:
    """The events of one sender, as they came.

    Attributes:
        received: how many different ones.
        highest: the highest number.
        holes: the numbers below that which have not come: [first, last] of each run.
    """

    received: int = 0
    highest: int = 0
    doubled: int = 0
    late: int = 0
    holes: list[list[int]] = field(default_factory=list)

    @property
    def lowest(self) -> int:
        """The lowest number; 0 when nothing has come."""
        begins_late = bool(self.holes) and self.holes[0][0] == 1
        return (self.holes[0][1] + 1 if begins_late else 1) if self.received else 0

    def take(self, number: int) -> None:
        """An event has come."""
        if number > self.highest:
            if number > self.highest + 1:
                self.holes.append([self.highest + 1, number - 1])
            self.highest = number
            self.received += 1
        elif self._fill(number):
            self.late += 1
            self.received += 1
        else:
            self.doubled += 1

    def _fill(self, number: int) -> bool:
        for index, (first, last) in enumerate(self.holes):
            if first <= number <= last:
                rest = [[first, number - 1], [number + 1, last]]
                self.holes[index : index + 1] = [hole for hole in rest if hole[0] <= hole[1]]
                return True
        return False

    def missing(self, first: int, last: int) -> int:
        """How many of these numbers have not come."""
        holes = [*self.holes, [self.highest + 1, max(self.highest, last)]]
        return sum(max(0, min(end, last) - max(begin, first) + 1) for begin, end in holes)


class Checker:
    """One receiver's account. Fed by a client's thread, read by a test's."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}
        self._lock = threading.Lock()

    def take(self, sender: str, number: int) -> None:
        """An event has come."""
        with self._lock:
            self._streams.setdefault(sender, Stream()).take(number)

    def received(self, sender: str) -> int:
        """How many different events of one sender have come."""
        with self._lock:
            return self._streams.get(sender, Stream()).received

    def highest(self, sender: str) -> int:
        """The highest number of one sender."""
        with self._lock:
            return self._streams.get(sender, Stream()).highest

    def lowest(self, sender: str) -> int:
        """The lowest number of one sender."""
        with self._lock:
            return self._streams.get(sender, Stream()).lowest

    def report(self, sent: Mapping[str, int], first: Mapping[str, int] | None = None) -> Report:
        """Compare with what the senders say.

        Args:
            sent: the last number of each sender that is judged.
            first: numbers below these are not asked for: the receiver was not there yet.
        """
        with self._lock:
            judged = {sender: self._streams.get(sender, Stream()) for sender in sent}
            return Report(
                received=sum(stream.received for stream in judged.values()),
                missing=sum(
                    stream.missing((first or {}).get(sender, 1), sent[sender]) for sender, stream in judged.items()
                ),
                doubled=sum(stream.doubled for stream in judged.values()),
                late=sum(stream.late for stream in judged.values()),
            )


@dataclass(slots=True)
class SessionAccount:
    """One node's books on its session with a peer, in messages: events, and whatever else nodes say to each other.

    Attributes:
        sent: the number of our last message.
        waiting: how many of them the peer has not acknowledged.
        sent_lost: how many of them we have declared lost.
        received_lost: how many of its messages the peer has declared lost.
        handed_on: how many of its messages were acted upon; counted apart from the session's own numbers.
        links: connections to it that are up.
    """

    sent: int
    waiting: int
    sent_lost: int
    received_lost: int
    handed_on: int
    links: int


@dataclass(slots=True)
class Account:
    """What one node says when all is quiet.

    Attributes:
        boot: names its numbered events.
        sent: the number of its last event.
        owed: by peer, the first event that went to it: what was emitted before it was known is not asked for.
        heard: by boot, the events that came here.
        sessions: by peer.
    """

    uid: str
    boot: str
    sent: int
    owed: dict[str, int]
    heard: dict[str, Stream]
    sessions: dict[str, SessionAccount]

    def told(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Account:
        """The reverse of `told`."""
        heard = {boot: Stream(**stream) for boot, stream in told["heard"].items()}
        sessions = {uid: SessionAccount(**session) for uid, session in told["sessions"].items()}
        return cls(told["uid"], told["boot"], told["sent"], dict(told["owed"]), heard, sessions)


def violations(accounts: Sequence[Account]) -> list[str]:
    """What is wrong between these nodes, each one alive, linked to the others, and quiet:

    - each two have exactly one link, on both sides;
    - the events of each sender came in strictly rising order, also those of senders that have died;
    - handed on + declared lost = sent, and both sides declare the same;
    - no event is missing that was not declared lost.
    """
    wrong = [
        f"{account.uid}: {stream.doubled} events of {boot} doubled, {stream.late} late"
        for account in accounts
        for boot, stream in account.heard.items()
        if stream.doubled or stream.late
    ]
    for sender, receiver in itertools.permutations(accounts, 2):
        wrong += [f"{sender.uid} -> {receiver.uid}: {text}" for text in _between(sender, receiver)]
    return wrong


def _between(sender: Account, receiver: Account) -> list[str]:
    out, back = sender.sessions.get(receiver.uid), receiver.sessions.get(sender.uid)
    if out is None or back is None:
        return ["they do not know each other"]
    lost = back.received_lost
    first = sender.owed.get(receiver.uid, sender.sent + 1)
    missing = receiver.heard.get(sender.boot, Stream()).missing(first, sender.sent)
    checks = {
        f"{out.links} links": out.links == 1,
        f"{out.waiting} messages wait": out.waiting == 0,
        f"{back.handed_on} handed on + {lost} lost != {out.sent} sent": back.handed_on + lost == out.sent,
        f"the sender says {out.sent_lost} lost, the receiver {lost}": out.sent_lost == lost,
        f"{missing} events missing, {lost} messages lost": missing <= lost,
    }
    return [text for text, is_so in checks.items() if not is_so]
