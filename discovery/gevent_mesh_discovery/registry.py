"""Who is registered: names, addresses, leases, and what has changed since somebody last asked.

Rules:

- Pure: no sockets, no clock, no randomness. Time is an argument, connections are opaque hashable things.
- One name for each connection, one connection for each name. A name is taken over only with the secret that it was
  registered with; a name without a secret (a Node client) only once its connection has gone quiet.
- A lease runs from the last time anything was heard. `overdue` tells who is to be cut; it is the caller who cuts.
- Who registers an address that somebody else has is its successor: a process that was started where another one has
  died. The former holder's lease is over as soon as it is quiet; as long as it is heard, it keeps its place, for an
  address alone proves nothing.
- Changes are collected until `take_change`. Every name that was touched is in it, also when it is back where it was:
  somebody may have been given the roster in between.
"""

from __future__ import annotations

import hmac
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gevent_mesh.protocol.discovery import (
    CLOSE_FULL,
    CLOSE_MALFORMED,
    CLOSE_TAKEN,
    LEASE_SECONDS,
    PING_SECONDS,
    Register,
)

__all__ = ["Accepted", "Change", "Registry", "Rejected"]

C = TypeVar("C", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Accepted(Generic[C]):
    """The connection now holds the name. `replaced` held it before, and is to be closed."""

    replaced: C | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """The connection is to be closed with this code."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """What is different since the last change was taken.

    Attributes:
        version: the roster's number after this change.
        complete: as in `Registry.complete`.
        added: address by name, of those who came or whose address is another one.
        removed: names of those who left.
    """

    version: int
    complete: bool
    added: dict[str, str]
    removed: tuple[str, ...]


@dataclass(slots=True)
class _Member(Generic[C]):
    connection: C
    register: Register
    heard_at: float

    @property
    def is_listed(self) -> bool:
        return self.register.role == "node"


class Registry(Generic[C]):
    """The members of one discovery server.

    Args:
        now: when the server started. For one lease from here on the roster is not complete.
        lease_seconds: silence after which a member is gone.
        ping_seconds: how often connections are made to say something.
        max_members: more are refused.
    """

    def __init__(
        self,
        now: float,
        *,
        lease_seconds: float = LEASE_SECONDS,
        ping_seconds: float = PING_SECONDS,
        max_members: int = 10_000,
    ) -> None:
        self.lease_seconds = lease_seconds
        self.version = 0
        self._complete_at = now + lease_seconds
        # A healthy connection is heard once in every ping interval, give or take its round trip.
        self._quiet_seconds = ping_seconds * 1.5
        self._max_members = max_members
        self._members: dict[str, _Member[C]] = {}
        self._names: dict[C, str] = {}
        self._touched: dict[str, None] = {}
        self._told_complete = False

    def __len__(self) -> int:
        """The number of nodes in the roster."""
        return sum(member.is_listed for member in self._members.values())

    def roster(self) -> dict[str, str]:
        """Address by name, in the order of registration."""
        return {name: member.register.address for name, member in self._members.items() if member.is_listed}

    def complete(self, now: float) -> bool:
        """Whether everybody who was there before a restart has had the time to come back."""
        return now >= self._complete_at

    def register(self, connection: C, register: Register, now: float) -> Accepted[C] | Rejected:
        """Give a connection a name, or a new address to the one it has."""
        name = register.server_id
        if self._names.get(connection, name) != name:
            return Rejected(CLOSE_MALFORMED, "one serverId for each connection")
        holder = self._members.get(name)
        if holder is None:
            if len(self._members) >= self._max_members:
                return Rejected(CLOSE_FULL, "full")
        elif holder.connection != connection and not self._may_replace(holder, register, now):
            return Rejected(CLOSE_TAKEN, "taken")
        return self._put(connection, register, now)

    def unregister(self, connection: C) -> bool:
        """Take a connection's name out. False when it has none, for example because it was replaced."""
        name = self._names.pop(connection, None)
        if name is None:
            return False
        self._touch(self._members.pop(name))
        return True

    def heard(self, connection: C, now: float) -> None:
        """Something came from a connection: its lease starts again."""
        name = self._names.get(connection)
        if name is not None:
            self._members[name].heard_at = now

    def overdue(self, now: float) -> list[C]:
        """The connections whose lease is over."""
        newest = {member.register.address: member for member in self._members.values() if member.is_listed}
        return [
            member.connection
            for member in self._members.values()
            if now - member.heard_at > self._lease_of(member, newest.get(member.register.address, member))
        ]

    def _lease_of(self, member: _Member[C], newest: _Member[C]) -> float:
        """How long a member may be silent, given who was the last to come to its address."""
        return self.lease_seconds if member is newest else min(self._quiet_seconds, self.lease_seconds)

    def take_change(self, now: float) -> Change | None:
        """Everything that changed since the last call, or None."""
        complete = self.complete(now)
        if not self._touched and complete == self._told_complete:
            return None
        touched, self._touched, self._told_complete = self._touched, {}, complete
        roster = {name: self._members[name] for name in touched if name in self._members}
        added = {name: member.register.address for name, member in roster.items() if member.is_listed}
        removed = tuple(name for name in touched if name not in added)
        return Change(self.version, complete, added, removed)

    def _may_replace(self, holder: _Member[C], register: Register, now: float) -> bool:
        secret = holder.register.secret
        if secret:
            return hmac.compare_digest(secret, register.secret)
        return now - holder.heard_at > self._quiet_seconds

    def _put(self, connection: C, register: Register, now: float) -> Accepted[C]:
        holder = self._members.get(register.server_id)
        if holder is None:
            member = self._members[register.server_id] = _Member(connection, register, now)
            self._names[connection] = register.server_id
            self._touch(member)
            return Accepted()
        before = (holder.is_listed, holder.register.address)
        replaced = None if holder.connection == connection else holder.connection
        if replaced is not None:
            del self._names[replaced]
        self._names[connection] = register.server_id
        holder.connection, holder.register, holder.heard_at = connection, register, now
        if before != (holder.is_listed, register.address):
            self._touch(holder, was_listed=before[0])
        return Accepted(replaced)

    def _touch(self, member: _Member[C], *, was_listed: bool = False) -> None:
        if member.is_listed or was_listed:
            self._touched[member.register.server_id] = None
            self.version += 1
