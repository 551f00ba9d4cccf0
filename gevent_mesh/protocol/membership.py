"""Membership: who belongs to the mesh, who dials whom, and when a silent peer is given up.

Rules:

- A roster only **adds** candidates. Nothing that discovery says ends a link that is up; a name that leaves the roster
  is merely no longer dialled once its link has been down for a minute.
- What a peer names (`told`) is only tried. It changes nothing that is known, takes nobody's place, and is forgotten
  when no link came of it inside the resume window; each peer may have `MAX_TOLD` of such names with us.
- The roster of a server that has been away for a minute does not count while another server is there: nobody would
  ever take the dead out of it.
- Of a pair the smaller uid dials. If it has not managed within `FALLBACK_SECONDS`, the other side tries as well.
- States: *joining* (named, never linked), *alive* (a link is up), *suspect* (the link is down, inside the resume
  window), *dead* (the window is over: messages are only counted). A uid that says BYE, or whose address was taken over
  by a new uid while its link was down, leaves at once: it will not come back.
- Time is an argument, always monotonic.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

__all__ = ["FALLBACK_SECONDS", "Backoff", "Change", "Member", "Membership", "PeerState", "dials"]

FALLBACK_SECONDS = 3.0
"""How long the larger uid waits for the smaller one to dial."""
EXHAUSTED_SECONDS = 1.0
"""When to dial again after a dial that failed because this process had no descriptor left."""
STOP_DIALLING_SECONDS = 60.0
"""How long a peer that no roster names is dialled after its link went down."""
AWAY_SECONDS = 60.0
"""How long the roster of a discovery server that cannot be reached counts while another one can."""
MAX_TOLD = 256
"""How many nodes that are not linked one peer may have named."""
MAX_MEMBERS = 4096
"""How many members there may be for peers to name more."""
FORGET_SECONDS = 600.0
"""How long the counters of a dead peer are kept, in case that it comes back with the same uid."""
MAX_DEAD = 1024
"""How many dead peers that no roster names are kept so; the oldest go first."""
REMEMBER_GONE = 1024
"""How many uids that said goodbye are remembered: a roster may name them for a moment longer."""


MAX_NAMES = 16_384
"""More names are not taken from rosters, each of which may have a quarter of that."""


class PeerState(str, Enum):
    """What we think of a peer."""

    JOINING = "joining"
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


def dials(our_uid: str, their_uid: str) -> bool:
    """Tell whether it is our part to open the link of this pair."""
    return our_uid < their_uid


class Backoff:
    """Full-jitter exponential backoff: each delay is uniform between 0 and a bound that doubles up to a cap.

    `reset` belongs where success is complete (WELCOME, an accepted register), never where TCP connects: a peer that
    accepts and then refuses would be dialled without end at the fastest pace.
    """

    def __init__(self, rng: random.Random, *, base_seconds: float = 0.5, cap_seconds: float = 15.0) -> None:
        self._rng = rng
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._failures = 0

    def next_delay(self) -> float:
        """The seconds to wait before the next try."""
        bound = min(self._cap_seconds, self._base_seconds * 2 ** min(self._failures, 16))
        self._failures += 1
        return self._rng.uniform(0.0, bound)

    def reset(self) -> None:
        """The other side is fine: start from the base again."""
        self._failures = 0


@dataclass(slots=True)
class Member:
    """What is known of one other node.

    Attributes:
        since: when the present state began; while a link is down, when it went down or when the name appeared.
        was_named: some roster has named it.
        told_by: the peer that named it, as long as neither a roster nor a link has.
        told_at: when a peer said last that it is linked to it.
    """

    uid: str
    address: str
    state: PeerState
    since: float
    was_named: bool = False
    told_by: str = ""
    told_at: float = -math.inf


@dataclass(frozen=True, slots=True)
class Change:
    """One transition. `before` is None for a newcomer, `after` is None for one that is forgotten."""

    uid: str
    before: PeerState | None
    after: PeerState | None


@dataclass(slots=True)
class Membership:
    """The table of members. Every method that can change a state returns what changed, in order.

    Args:
        our_uid: never a member of its own table.
        resume_window: seconds from the loss of a link to the end of its session.
    """

    our_uid: str
    resume_window: float
    _members: dict[str, Member] = field(default_factory=dict)
    _rosters: dict[str, dict[str, str]] = field(default_factory=dict)
    _away_since: dict[str, float] = field(default_factory=dict)
    _gone: dict[str, None] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def __contains__(self, uid: str) -> bool:
        return uid in self._members

    def __getitem__(self, uid: str) -> Member:
        return self._members[uid]

    def get(self, uid: str) -> Member | None:
        """The member with this uid."""
        return self._members.get(uid)

    def is_listed(self, uid: str) -> bool:
        """Whether any discovery server names this uid."""
        return any(uid in roster for roster in self._rosters.values())

    def is_delisted(self, uid: str) -> bool:
        """Whether discovery has named this uid and does not any more: as a rule its process has ended."""
        member = self._members.get(uid)
        return member is not None and member.was_named and not self.is_listed(uid)

    def wants_dial(self, uid: str, now: float) -> bool:
        """Whether a link to this uid should be opened, by either side."""
        member = self._members.get(uid)
        if member is None or member.state is PeerState.ALIVE or not member.address:
            return False
        return self.is_listed(uid) or now - max(member.since, member.told_at) < STOP_DIALLING_SECONDS

    def dial_at(self, uid: str) -> float:
        """The earliest time at which our side may dial this uid: the smaller uid at once, the larger as a fallback."""
        since = self._members[uid].since
        return since if dials(self.our_uid, uid) else since + FALLBACK_SECONDS

    # ------------------------------------------------------------------ events

    def roster(
        self, source: str, servers: Mapping[str, str], complete: bool, now: float, removed: Iterable[str] = ()
    ) -> list[Change]:
        """A discovery server told its roster.

        Args:
            source: which server; the union of all servers' rosters counts.
            servers: addresses by uid.
            complete: whether a name that is missing is really gone. Just after its start a server does not know yet.
            removed: names that it has seen go, complete or not.
        """
        self._away_since.pop(source, None)
        gone = set(removed)
        known = {uid: address for uid, address in self._rosters.get(source, {}).items() if uid not in gone}
        named = dict(servers) if complete else {**known, **servers}
        self._rosters[source] = dict(islice(named.items(), MAX_NAMES))
        changes = []
        for uid, address in servers.items():
            if uid != self.our_uid and uid not in self._gone:
                changes += self._named(uid, address, now)
        return changes

    def _named(self, uid: str, address: str, now: float) -> list[Change]:
        member = self._members.get(uid)
        if member is None:
            if len(self._members) >= MAX_NAMES:
                return []
            changes = self._superseded(uid, address)
            self._members[uid] = Member(uid, address, PeerState.JOINING, now, was_named=True)
            return [*changes, Change(uid, None, PeerState.JOINING)]
        member.was_named, member.told_by = True, ""
        if member.state is not PeerState.ALIVE:
            # A link that is up has told us the address itself.
            member.address = address
        return []

    def roster_away(self, source: str, now: float) -> None:
        """A discovery server cannot be reached: its roster counts for a while, or until some server is there."""
        if source in self._rosters:
            self._away_since.setdefault(source, now)

    def told(self, teller: str, nodes: Mapping[str, str], now: float) -> list[Change]:
        """A peer named nodes that it is linked to, with their addresses."""
        changes = []
        room = MAX_TOLD - sum(member.told_by == teller for member in self._members.values())
        for uid, address in nodes.items():
            member = self._members.get(uid)
            if member is not None:
                member.told_at = now
            elif uid != self.our_uid and uid not in self._gone and room > 0 and len(self._members) < MAX_MEMBERS:
                room -= 1
                self._members[uid] = Member(uid, address, PeerState.JOINING, now, told_by=teller, told_at=now)
                changes.append(Change(uid, None, PeerState.JOINING))
        return changes

    def _superseded(self, uid: str, address: str) -> list[Change]:
        """A new uid at the address of one whose link is down is its successor: another process, with no memory."""
        if not address:
            # Emitters are dialled by nobody and tell none: having no address in common means nothing.
            return []
        gone = [
            member.uid
            for member in self._members.values()
            if member.address == address
            and member.uid != uid
            and member.state is not PeerState.ALIVE
            and not self.is_listed(member.uid)
        ]
        return [change for old in gone for change in self._remove(old)]

    def link_up(self, uid: str, address: str, now: float) -> list[Change]:
        """A link to this uid is up; it told its address. Whoever said goodbye in its name before was not this one."""
        self._gone.pop(uid, None)
        changes = self._superseded(uid, address)
        member = self._members.get(uid)
        if member is None:
            self._members[uid] = Member(uid, address, PeerState.ALIVE, now)
            return [*changes, Change(uid, None, PeerState.ALIVE)]
        member.address, member.told_by = address or member.address, ""
        return [*changes, *self._move(member, PeerState.ALIVE, now)]

    def link_down(self, uid: str, now: float) -> list[Change]:
        """The link to this uid is gone."""
        member = self._members.get(uid)
        if member is None or member.state is not PeerState.ALIVE:
            return []
        return self._move(member, PeerState.SUSPECT, now)

    def forget(self, uid: str) -> list[Change]:
        """This uid is not where it was said to be, and nobody says more."""
        return self._remove(uid)

    def left(self, uid: str) -> list[Change]:
        """This uid will not come back."""
        self._gone[uid] = None
        while len(self._gone) > REMEMBER_GONE:
            del self._gone[next(iter(self._gone))]
        return self._remove(uid)

    def _remove(self, uid: str) -> list[Change]:
        for roster in self._rosters.values():
            roster.pop(uid, None)
        member = self._members.pop(uid, None)
        return [] if member is None else [Change(uid, member.state, None)]

    def tick(self, now: float) -> list[Change]:
        """Give up those that have been away for too long."""
        self._drop_rosters(now)
        changes: list[Change] = []
        for member in self:
            away = now - member.since
            if member.told_by and away >= self.resume_window:
                changes += self._remove(member.uid)
            elif member.state in (PeerState.JOINING, PeerState.SUSPECT) and away >= self.resume_window:
                changes += self._give_up(member)
            elif member.state is PeerState.DEAD and away >= FORGET_SECONDS and not self.is_listed(member.uid):
                changes += self._remove(member.uid)
        return changes + self._forget_surplus()

    def _forget_surplus(self) -> list[Change]:
        dead = [member for member in self if member.state is PeerState.DEAD and not self.is_listed(member.uid)]
        surplus = sorted(dead, key=lambda member: member.since)[: max(0, len(dead) - MAX_DEAD)]
        return [change for member in surplus for change in self._remove(member.uid)]

    def _drop_rosters(self, now: float) -> None:
        """Drop those of servers that have been away for long, unless all are away."""
        if len(self._away_since) == len(self._rosters):
            return
        for source in [source for source, since in self._away_since.items() if now - since >= AWAY_SECONDS]:
            del self._rosters[source], self._away_since[source]

    def _give_up(self, member: Member) -> list[Change]:
        before, member.state = member.state, PeerState.DEAD
        # `since` stays: the time away counts from the loss of the link.
        return [Change(member.uid, before, PeerState.DEAD)]

    def _move(self, member: Member, state: PeerState, now: float) -> list[Change]:
        before = member.state
        if before is state:
            return []
        member.state, member.since = state, now
        return [Change(member.uid, before, state)]
