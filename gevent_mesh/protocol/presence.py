"""Presence: who is online in one namespace. Each node's word on its own clients, copied by all others.

Rules:

- Only a node itself says who its clients are. What it says is numbered: *version* n+1 is version n and one *delta*.
- A copy takes a delta only on top of the version before it. What was lost on the way (a link that was down for longer
  than the resume window, a newcomer) shows as a version that does not follow; then the copy *pulls*: it asks for
  everything, piece by piece. At every link-up a node *announces* its version, so a loss is found even if nothing
  changes afterwards.
- Pieces are read when they are asked for, not when the pull began, and travel in order with the deltas. So whatever
  comes last about a client is right, and a pull needs neither a frozen state nor a queue of deltas. What a pull has not
  confirmed by its last piece is gone.
- A copy of a node that has lapsed is kept, but not *shown*: if the node comes back and says the same version, nothing
  has to travel. Users are what all shown clients of all nodes say together.
- Whoever watches is owed at most one word about each user: that it came, left, or is not as it was told. A user who has
  come and gone meanwhile is worth none. So a slow listener has no queue that could grow.
- Showing or hiding thousands of clients at once is work for several turns (`PresenceTable.settle`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgpack

from .presence_messages import (
    MAX_META_BYTES,
    MAX_SID_CHARS,
    MAX_USER_CHARS,
    UserId,
    is_sendable,
    is_sid,
    is_user,
    presence_delta,
    presence_piece,
    presence_version,
    presence_wanted,
    unpack_meta,
)

__all__ = ["Change", "Notice", "PresenceTable", "PresentClient", "PresentUser", "check_sid", "check_user", "pack_meta"]

PULL_SECONDS = 10.0
"""How long the next piece of a pull may take. Links lose nothing in silence: this is for a peer that is broken."""
PIECE_CHANGES = 500
PIECE_BYTES = 32 * 1024
"""A delta or a piece is full with so much; even the smallest outbox that can be configured has room for two."""

MAX_CLIENTS = 250_000
"""Clients that are kept of one node in one namespace: more than a process can serve."""

Key = tuple[str, str]
"""(node, sid): names a client among those of all nodes."""


# ---------------------------------------------------------------------- values


@dataclass(frozen=True, slots=True)
class PresentClient:
    """One connection of a user who is online: a tab, a phone.

    Attributes:
        sid: its id; `emit(to=sid)` reaches it from every node.
        node: uid of the node that it is connected to.
        meta: what the application said of it.
        since: when it was tracked as this user, seconds since the epoch by its node's clock.
    """

    sid: str
    node: str
    meta: dict[Any, Any]
    since: float


@dataclass(frozen=True, slots=True)
class PresentUser:
    """A user who is online.

    Attributes:
        id: as given to `track`.
        meta: that of the client which was tracked, or given other metadata, last. Copy it before you change it.
        since: when the first client that is still there was tracked, seconds since the epoch.
        clients: all of the user's connections, on all nodes; the oldest first.
    """

    id: UserId
    meta: dict[Any, Any]
    since: float
    clients: tuple[PresentClient, ...]

    @property
    def sids(self) -> tuple[str, ...]:
        """The ids of the user's connections."""
        return tuple(client.sid for client in self.clients)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The uids of the nodes that the user is connected to, each once."""
        return tuple(dict.fromkeys(client.node for client in self.clients))


class Change(Enum):
    """What can have become of a user."""

    JOINED = "joined"
    LEFT = "left"
    UPDATED = "updated"
    """Other clients, or other metadata; online before and after."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What is owed to those who watch: the user as it is now, or as it was when it left."""

    change: Change
    user: PresentUser


@dataclass(frozen=True, slots=True)
class Entry:
    """What a node says of one client. `meta` stays packed: what is copied is rarely looked at."""

    user: UserId
    meta: bytes
    since: float
    updated: float


def check_user(user: object) -> UserId:
    """The user id, as a plain text or int.

    Raises:
        TypeError: it is something else.
        ValueError: it is too large to travel, or the empty text, which is nearly always an id that is missing.
    """
    if isinstance(user, str):
        text = str.__str__(user)
        if not text:
            raise ValueError("a user id must not be the empty text: is the user's id missing?")
        if len(text) > MAX_USER_CHARS or not is_sendable(text):
            raise ValueError(f"a user id must be valid Unicode of at most {MAX_USER_CHARS} characters")
        return text
    if isinstance(user, int) and not isinstance(user, bool):
        if not is_user(int(user)):
            raise ValueError("a user id that is an int must fit into 64 bits")
        return int(user)
    raise TypeError(f"a user id must be a str or an int, not {type(user).__name__}; pass str(...) of anything else")


def check_sid(sid: object) -> str:
    """The sid, if it may be one that travels.

    Raises:
        TypeError: it is no text.
        ValueError: it is longer than other nodes take.
    """
    if not isinstance(sid, str):
        raise TypeError(f"a sid must be a str, not {type(sid).__name__}")
    if not is_sid(sid):
        raise ValueError(f"a sid must be valid Unicode of 1 to {MAX_SID_CHARS} characters")
    return sid


def pack_meta(meta: object) -> bytes:
    """Encode what an application says of a client.

    Raises:
        TypeError: it is not a dict, or holds what msgpack cannot encode.
        ValueError: it is too large.
    """
    if not isinstance(meta, dict):
        raise TypeError(f"meta must be a dict, not {type(meta).__name__}")
    try:
        packed: bytes = msgpack.packb(meta)
        # Read back as others will: a tuple as a key becomes a list, which can be none.
        unpack_meta(packed)
    except (TypeError, ValueError, OverflowError) as exc:
        raise TypeError(
            f"meta must hold plain values that msgpack can encode (text, numbers, lists ...): {exc}"
        ) from exc
    if len(packed) > MAX_META_BYTES:
        raise ValueError(
            f"meta has {len(packed)} bytes when encoded, more than the limit of {MAX_META_BYTES}: "
            "every node keeps it for every client; keep what is large in a database, by user id"
        )
    return packed


# ---------------------------------------------------------------------- parts of the table


@dataclass(slots=True)
class _Pull:
    """A copy that asks for everything, piece by piece."""

    request: int
    deadline: float
    part: int = 0
    is_stale: bool = False
    """The link went down meanwhile, and took who knows what with it."""
    confirmed: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Copy:
    """What one node says, as far as it is known here.

    Attributes:
        version: of `entries`; None while a pull waits for its first piece.
        entries: the node's clients.
        placed: those of them that are counted among the users, in the form in which they are.
        is_shown: whether all of them should be.
        unsettled: clients whose place is to be looked at again.
    """

    version: int | None = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    placed: dict[str, Entry] = field(default_factory=dict)
    is_shown: bool = True
    pull: _Pull | None = None
    unsettled: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _User:
    """One user who is online: entries by (node, sid), and what was made of them."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    made: PresentUser | None = None


@dataclass(slots=True)
class _Owed:
    """What those who watch are to be told of a user; `last` is how it was when it left."""

    change: Change
    last: PresentUser | None = None


@dataclass(slots=True)
class _Cursor:
    """How far a peer's pull from us has got."""

    request: int
    sids: list[str]
    part: int = 0


# ---------------------------------------------------------------------- the table


class PresenceTable:
    """Who is online in one namespace, as one node sees it.

    It sends nothing itself: methods return the data of PRESENCE and PRESENCE_WANTED messages to send.

    Args:
        uid: this node's.
    """

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.version = 0
        self._own = _Copy()
        self._copies: dict[str, _Copy] = {}
        self._dirty: OrderedDict[str, None] = OrderedDict()
        self._cursors: dict[str, _Cursor] = {}
        self._users: dict[UserId, _User] = {}
        self._owed: OrderedDict[UserId, _Owed] | None = None
        self._requests = 0

    # ------------------------------------------------------------------ our own clients

    def track(self, sid: str, user: UserId, meta: bytes, now: float) -> None:
        """A client of ours belongs to this user.

        Args:
            sid: the client.
            user: from `check_user`.
            meta: from `pack_meta`.
            now: seconds since the epoch.
        """
        known = self._own.entries.get(sid)
        if known is not None and (known.user, known.meta) == (user, meta):
            return
        since = known.since if known is not None and known.user == user else now
        self._own.entries[sid] = Entry(user, meta, since, now)
        self._own_changed(sid)

    def untrack(self, sid: str) -> None:
        """A client of ours belongs to nobody, or is gone."""
        if self._own.entries.pop(sid, None) is not None:
            self._own_changed(sid)

    def _own_changed(self, sid: str) -> None:
        self._dirty[sid] = None
        self._place(self.uid, self._own, sid)

    @property
    def has_delta(self) -> bool:
        """Whether there is something to tell the other nodes."""
        return bool(self._dirty)

    def next_delta(self) -> dict[str, Any]:
        """What has changed since the last delta, or as much of it as fits into one. To be sent in this order to all."""
        rows: list[list[Any]] = []
        gone: list[str] = []
        size = 0
        while self._dirty and size < PIECE_BYTES and len(rows) + len(gone) < PIECE_CHANGES:
            sid, _ = self._dirty.popitem(last=False)
            entry = self._own.entries.get(sid)
            if entry is None:
                gone.append(sid)
                size += len(sid)
            else:
                rows.append(_row(sid, entry))
                size += _row_size(sid, entry)
        self.version += 1
        return presence_delta(self.version, rows, gone)

    def announcement(self) -> dict[str, Any] | None:
        """Our version, for a peer that has just been linked. None if nobody was ever tracked here."""
        return presence_version(self.version) if self.version else None

    def piece(self, peer: str, request: int, part: int) -> dict[str, Any] | None:
        """The next piece of all that we have to say, for a peer that asks. To be sent before anything else happens."""
        if part == 0:
            self._cursors[peer] = _Cursor(request, list(self._own.entries))
        cursor = self._cursors.get(peer)
        if cursor is None or (cursor.request, cursor.part) != (request, part):
            return None
        cursor.part += 1
        rows: list[list[Any]] = []
        size = 0
        while cursor.sids and size < PIECE_BYTES and len(rows) < PIECE_CHANGES:
            sid = cursor.sids.pop()
            entry = self._own.entries.get(sid)
            if entry is not None:
                rows.append(_row(sid, entry))
                size += _row_size(sid, entry)
        more = bool(cursor.sids)
        if not more:
            del self._cursors[peer]
        return presence_piece(self.version, rows, request=request, part=part, more=more)

    # ------------------------------------------------------------------ what other nodes say

    def take(self, node: str, data: dict[str, Any], now: float) -> dict[str, Any] | None:
        """A PRESENCE has come.

        Args:
            node: who sent it.
            data: valid (see `messages`).
            now: monotonic.

        Returns:
            What to ask that node for (PRESENCE_WANTED), if anything.
        """
        copy = self._copies.setdefault(node, _Copy())
        if "request" in data:
            return self._take_piece(node, copy, data, now)
        if "set" in data:
            return self._take_delta(node, copy, data, now)
        return self._take_version(copy, data["version"], now)

    def _take_version(self, copy: _Copy, version: int, now: float) -> dict[str, Any] | None:
        if copy.pull is not None:
            return self._pull(copy, now) if copy.pull.is_stale else None
        if copy.version != version:
            return self._pull(copy, now)
        self._show(copy, True)
        return None

    def _take_delta(self, node: str, copy: _Copy, data: dict[str, Any], now: float) -> dict[str, Any] | None:
        version = data["version"]
        if copy.version is None or version <= copy.version:
            # The first piece of the pull will say it, or has said it: it was read after this delta was made.
            return None
        if version != copy.version + 1:
            return self._pull(copy, now)
        copy.version = version
        self._set(node, copy, data["set"])
        for sid in data["gone"]:
            self._drop(node, copy, sid)
        return None

    def _take_piece(self, node: str, copy: _Copy, data: dict[str, Any], now: float) -> dict[str, Any] | None:
        pull = copy.pull
        if pull is None or (data["request"], data["part"]) != (pull.request, pull.part):
            return None
        if pull.part == 0:
            copy.version = data["version"]
        pull.part += 1
        pull.deadline = now + PULL_SECONDS
        self._set(node, copy, data["set"])
        if data["more"]:
            return presence_wanted(pull.request, pull.part)
        self._pulled(copy, pull)
        return None

    def _pull(self, copy: _Copy, now: float) -> dict[str, Any]:
        self._requests += 1
        copy.version = None
        copy.pull = _Pull(self._requests, now + PULL_SECONDS)
        return presence_wanted(self._requests, 0)

    def _pulled(self, copy: _Copy, pull: _Pull) -> None:
        unconfirmed = [sid for sid in copy.entries if sid not in pull.confirmed]
        for sid in unconfirmed:
            del copy.entries[sid]
        copy.pull = None
        copy.unsettled += unconfirmed
        self._show(copy, True)

    def _set(self, node: str, copy: _Copy, rows: Iterable[list[Any]]) -> None:
        for sid, user, meta, since, updated in rows:
            if len(copy.entries) >= MAX_CLIENTS and sid not in copy.entries:
                continue
            copy.entries[sid] = Entry(user, meta, since, updated)
            if copy.pull is not None:
                copy.pull.confirmed.add(sid)
            self._place(node, copy, sid)

    def _drop(self, node: str, copy: _Copy, sid: str) -> None:
        copy.entries.pop(sid, None)
        if copy.pull is not None:
            copy.pull.confirmed.discard(sid)
        self._place(node, copy, sid)

    # ------------------------------------------------------------------ nodes come and go

    def linked(self, node: str) -> None:
        """A link to this node has come up. What it says next is its version."""
        copy = self._copies.get(node)
        if copy is not None and copy.pull is not None:
            copy.pull.is_stale = True

    def lapsed(self, node: str) -> None:
        """This node is not there: its clients are not online, until it says so again."""
        self._cursors.pop(node, None)
        copy = self._copies.get(node)
        if copy is not None:
            self._show(copy, False)

    def forget(self, known: Iterable[str]) -> None:
        """Free what is kept of nodes that are not known any more. Call it now and then."""
        for node in self._copies.keys() - set(known):
            copy = self._copies[node]
            self._show(copy, False)
            if not copy.placed:
                del self._copies[node]

    def overdue(self, now: float) -> list[tuple[str, dict[str, Any]]]:
        """Pulls that nobody answers, asked for again: nodes, and what to ask them for."""
        return [
            (node, self._pull(copy, now))
            for node, copy in self._copies.items()
            if copy.pull is not None and now >= copy.pull.deadline
        ]

    def renamed(self, uid: str) -> None:
        """This node has joined the mesh anew, under another uid: to the others it is another node."""
        before, self.uid = self.uid, uid
        for sid, entry in self._own.placed.items():
            # In this order nobody leaves meanwhile.
            self._enter(entry.user, (uid, sid), entry)
            self._leave(entry.user, (before, sid))

    # ------------------------------------------------------------------ from clients to users

    def _show(self, copy: _Copy, shown: bool) -> None:
        if copy.is_shown is not shown:
            copy.is_shown = shown
            copy.unsettled = list(copy.entries.keys() | copy.placed.keys())

    @property
    def is_settled(self) -> bool:
        """Whether the users are what the nodes say."""
        return not any(copy.unsettled for copy in self._copies.values())

    def settle(self, limit: int) -> None:
        """Look at the place of so many clients whose node has come or gone."""
        for node, copy in self._copies.items():
            while copy.unsettled and limit > 0:
                limit -= 1
                self._place(node, copy, copy.unsettled.pop())

    def _place(self, node: str, copy: _Copy, sid: str) -> None:
        """Make the users agree with what the copy says of this client now."""
        wanted = copy.entries.get(sid) if copy.is_shown else None
        placed = copy.placed.get(sid)
        if wanted == placed:
            return
        # In this order: a user who stays with another client, or with new metadata, has not left meanwhile.
        if wanted is not None:
            copy.placed[sid] = wanted
            self._enter(wanted.user, (node, sid), wanted)
        else:
            del copy.placed[sid]
        if placed is not None and (wanted is None or wanted.user != placed.user):
            self._leave(placed.user, (node, sid))

    def _enter(self, user: UserId, key: Key, entry: Entry) -> None:
        found = self._users.get(user)
        if found is None:
            found = self._users[user] = _User()
            self._owe(user, Change.JOINED)
        else:
            self._owe(user, Change.UPDATED)
        found.entries[key] = entry
        found.made = None

    def _leave(self, user: UserId, key: Key) -> None:
        found = self._users[user]
        if len(found.entries) == 1:
            self._owe(user, Change.LEFT)
            del self._users[user]
        else:
            self._owe(user, Change.UPDATED)
            del found.entries[key]
            found.made = None

    # ------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return len(self._users)

    def __contains__(self, user: object) -> bool:
        return is_user(user) and user in self._users

    def get(self, user: object) -> PresentUser | None:
        """The user, if online. 1 and True are one key to a dict; only one of them is a user id."""
        found = self._users.get(user) if is_user(user) else None  # type: ignore[call-overload]
        return None if found is None else _made(user, found)  # type: ignore[arg-type]

    def users(self) -> dict[UserId, PresentUser]:
        """All who are online."""
        return {user: _made(user, found) for user, found in self._users.items()}

    # ------------------------------------------------------------------ watching

    def watch(self) -> None:
        """From now on somebody wants to know who comes and goes."""
        if self._owed is None:
            self._owed = OrderedDict()

    def _owe(self, user: UserId, change: Change) -> None:
        """Something is about to become of a user. With what is owed already it makes one notice, or none."""
        if self._owed is None:
            return
        owed = self._owed.get(user)
        before = None if owed is None else owed.change
        if (before, change) == (Change.JOINED, Change.LEFT):
            del self._owed[user]
        elif change is Change.LEFT:
            self._owed[user] = _Owed(Change.LEFT, _made(user, self._users[user]))
        elif before is Change.LEFT:
            # Back before anybody was told, with another client.
            self._owed[user] = _Owed(Change.UPDATED)
        elif before is None:
            self._owed[user] = _Owed(change)

    @property
    def has_notice(self) -> bool:
        """Whether something is owed to those who watch."""
        return bool(self._owed)

    def next_notice(self, wanted: Collection[Change] = tuple(Change)) -> Notice | None:
        """What is owed for the longest time, and is not owed from now on.

        Args:
            wanted: changes that somebody listens to. Making the user of any other would be work for nothing.

        Returns:
            None if nothing is owed, or nobody listens to it.
        """
        if not self._owed:
            return None
        user, owed = self._owed.popitem(last=False)
        if owed.change not in wanted:
            return None
        return Notice(owed.change, owed.last or _made(user, self._users[user]))


def _row(sid: str, entry: Entry) -> list[Any]:
    return [sid, entry.user, entry.meta, entry.since, entry.updated]


def _row_size(sid: str, entry: Entry) -> int:
    """About how many bytes it takes; twice for texts, which are seldom all ASCII and seldom none of it."""
    user = 2 * len(entry.user) if isinstance(entry.user, str) else 8
    return 2 * len(sid) + user + len(entry.meta) + 24


def _made(user: UserId, found: _User) -> PresentUser:
    """The user's state, made when somebody looks. The same on all nodes that know the same."""
    if found.made is None:
        ordered = sorted(found.entries.items(), key=lambda item: (item[1].since, item[0]))
        clients = tuple(
            PresentClient(sid, node, unpack_meta(entry.meta), entry.since) for (node, sid), entry in ordered
        )
        latest = max(range(len(ordered)), key=lambda i: (ordered[i][1].updated, ordered[i][0]))
        found.made = PresentUser(user, clients[latest].meta, clients[0].since, clients)
    return found.made
