"""Room interest: which rooms have members on which node, so that events for a room need not go to nodes without any.

Each node *announces* its rooms to those that ask, the followers, and counts the versions of that; a follower keeps a
*copy* of it. Whoever publishes leaves a node out only under a *lease*, and only if the copy says that nobody is there.

Rules:

- A lease begins when the question for it is sent, by the asker's clock. It is in force once the answer has come, and
  ends `LEASE_SECONDS` after its beginning, a little earlier for clocks that differ in pace. None may stand still for
  longer than that little while others go on, as that of a paused virtual machine may.
- Whatever leads to the present version is sent before the answer, in the same ordered stream.
- Who lets a client into a new room announces it, and then waits until each node that may have a lease has said that it
  knows. Where one does not, it waits until `LEASE_SECONDS` after that node's last question before the announcement has
  come: a lease of that question has ended by then, for the question was sent before it came. Any later question is
  answered behind the announcement. So no lease is in force that leaves out a room whose members have been waited for,
  whatever the network does.
- Who has others put clients into rooms drops the leases of those nodes, behind the command in the same streams.
- A lease is good over the link that it was asked for over, and no other. That is caution: nothing else rests on it.
- A version or a part that does not follow, or an answer that does not fit, makes a copy void: no lease, ask for all.
- A node with more than `MAX_ROOMS` rooms, or with one that cannot be told, tells so and answers nothing: it gets all.
- A follower is forgotten by time alone. Its link or its membership may seem to end while its lease goes on.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import MessageError

__all__ = ["LEASE_SECONDS", "Announced", "Copy", "check_interest", "check_interest_known", "check_interest_wanted"]

LEASE_SECONDS = 2.0
"""How long one question saves sending; and how long a node that does not answer can delay who enters a new room."""
PACE_SECONDS = 0.05
"""What two clocks may differ by in that time. (They do by a thousandth of it.)"""
ANSWER_SECONDS = 10.0
"""After how much silence a question is asked again. Nodes without this option never answer."""
FOLLOW_SECONDS = 30.0
"""How long after its last question a node is told of changes, and keeps its copy."""
MAX_ROOMS = 500_000
MAX_ROOM_CHARS = 256
MESSAGE_ROOMS = 1000
MESSAGE_BYTES = 32 * 1024
"""In one message. The smallest outbox has room for two."""
MAX_MESSAGE_ROOMS = 4 * MESSAGE_ROOMS
"""In one message of somebody else's."""
MAX_NUMBER = 2**63

Key = tuple[str, Hashable]
"""A namespace and a room of it. The room None is everybody in the namespace."""
Rooms = dict[str, list[Hashable]]


# ---------------------------------------------------------------------- our own rooms


@dataclass(slots=True)
class Follower:
    """A node that has asked.

    Attributes:
        asked_at: when its last question came.
        known: the version that it is known to have, or to have no lease without.
        is_told: whether it gets announcements: not after one was left out, until it asks again.
    """

    asked_at: float
    known: int
    is_told: bool = False


@dataclass(slots=True)
class Announced:
    """The rooms of this node's clients, and who has been told of them.

    Attributes:
        version: counted up by each announcement.
        followers: by uid.
    """

    version: int = 0
    followers: dict[str, Follower] = field(default_factory=dict)
    _rooms: dict[str, set[Hashable]] = field(default_factory=dict)
    _count: int = 0
    _untellable: int = 0
    _all_since: int = 0
    """The version that said first that all is to come here. Whoever knows it gets no lease as long as that is so."""
    _pending: dict[Key, bool] = field(default_factory=dict)
    _fresh: dict[Key, tuple[int, float]] = field(default_factory=dict)
    """Rooms that not everybody may know: the version that has them, and when no lease without them is left."""

    def __len__(self) -> int:
        return self._count

    @property
    def is_everything(self) -> bool:
        """Whether this node has to get all events, for it cannot say which it needs."""
        return self._untellable > 0 or self._count > MAX_ROOMS

    @property
    def has_pending(self) -> bool:
        """Whether there is something to announce."""
        return bool(self._pending)

    def enter(self, namespace: str, room: Hashable) -> None:
        """A room has a member here; it may have had one before."""
        # An event for a tuple goes to everybody.
        if isinstance(room, tuple) or room in self._rooms.get(namespace, ()):
            return
        self._rooms.setdefault(namespace, set()).add(room)
        self._count += 1
        self._untellable += not _can_tell((namespace, room))
        self._note((namespace, room), entered=True)

    def leave(self, namespace: str, room: Hashable) -> None:
        """A room has no member here any more."""
        rooms = self._rooms.get(namespace, set())
        if room not in rooms:
            return
        rooms.remove(room)
        if not rooms:
            del self._rooms[namespace]
        self._count -= 1
        self._untellable -= not _can_tell((namespace, room))
        if not self.is_everything:
            self._all_since = 0
        self._note((namespace, room), entered=False)

    def _note(self, key: Key, *, entered: bool) -> None:
        if not self.followers:
            self.version += 1
        elif self._pending.get(key, entered) is entered:
            self._pending[key] = entered
        else:
            del self._pending[key]  # nobody has heard of what is undone

    def announce(self) -> list[dict[str, Any]]:
        """Take what has changed, as the data of INTEREST for each follower that is told; to be sent at once.

        Whatever becomes of one of them, those who wait for what is in it know until when.
        """
        pending, self._pending = self._pending, {}
        ends = self._leases_end()
        if self.is_everything and pending:
            self.version += 1
            self._all_since = self._all_since or self.version
            self._fresh.update((key, (self._all_since, ends)) for key, entered in pending.items() if entered)
            return [{"version": self.version, "all": True}]
        found = []
        for keys in _messages(filter(_can_tell, pending)):
            self.version += 1
            self._fresh.update((key, (self.version, ends)) for key in keys if pending[key])
            changes: dict[str, Any] = {"version": self.version}
            for name, is_in in (("in", True), ("out", False)):
                changes[name] = _by_namespace(key for key in keys if pending[key] is is_in)
            found.append(changes)
        return found

    def _leases_end(self) -> float:
        """When no lease that may be in force now is any more."""
        return max((follower.asked_at for follower in self.followers.values()), default=-math.inf) + LEASE_SECONDS

    def unsettled_until(self, namespace: str, room: Hashable, now: float) -> float | None:
        """Until when to wait before it is asked again whether everybody knows of a room, unless there is news before;
        None: everybody does."""
        key = (namespace, room)
        if self._pending.get(key):
            return now + LEASE_SECONDS
        version, ends = self._fresh.get(key, (0, -math.inf))
        leases = (follower.asked_at for follower in self.followers.values() if follower.known < version)
        left = [until for asked_at in leases if now < (until := min(ends, asked_at + LEASE_SECONDS))]
        if left:
            return min(left)
        self._fresh.pop(key, None)
        return None

    # -- followers

    def asked(self, uid: str, version: int | None, now: float) -> bool:
        """A question has come, with the version of the asker's copy. What is pending must have been announced.

        Returns:
            Whether that is the present version, so that an answer is all that is needed.
        """
        follower = self.followers.setdefault(uid, Follower(now, self.version))
        follower.asked_at = now
        follower.is_told = not self.is_everything
        return version == self.version

    def known(self, uid: str, version: int, now: float) -> bool:
        """A node says that it knows a version.

        Returns:
            Whether that is news to those who wait: everybody who may have a lease knows more than before.
        """
        follower = self.followers.get(uid)
        if follower is None:
            return False
        before = self._known_to_all(now)
        follower.known = max(follower.known, min(version, self.version))
        return self._known_to_all(now) > before

    def _known_to_all(self, now: float) -> float:
        leases = (follower for follower in self.followers.values() if now < follower.asked_at + LEASE_SECONDS)
        return min((follower.known for follower in leases), default=math.inf)

    def forget(self, now: float) -> None:
        """Drop what time has settled."""
        for uid, follower in list(self.followers.items()):
            if now - follower.asked_at >= FOLLOW_SECONDS:
                del self.followers[uid]
        for key, (_, ends) in list(self._fresh.items()):
            if now >= ends:
                del self._fresh[key]

    def snapshot(self) -> Iterator[dict[str, Any]]:
        """All rooms, as the data of INTEREST: at least one. Each is made when it is taken, of what is there then.

        What is pending must have been announced before each is taken, which must be sent at once.
        """
        known = [(namespace, list(rooms)) for namespace, rooms in self._rooms.items()]
        part = 0
        for keys in _messages((namespace, room) for namespace, rooms in known for room in rooms):
            here = (key for key in keys if key[1] in self._rooms.get(key[0], ()) and _can_tell(key))
            yield {"version": self.version, "part": part, "in": _by_namespace(here)}
            part += 1
        if not part:
            yield {"version": self.version, "part": 0, "in": {}}


def answer(number: int, version: int, parts: int) -> dict[str, Any]:
    """Data of the INTEREST that answers a question, behind so many parts."""
    return {"version": version, "number": number, "parts": parts}


def is_tellable(room: Hashable) -> bool:
    """Whether a room can be named in a message of ours."""
    if isinstance(room, (str, bytes)):
        return len(room) <= MAX_ROOM_CHARS and (isinstance(room, bytes) or _is_utf8(room))
    if isinstance(room, int):
        return -MAX_NUMBER <= room < 2 * MAX_NUMBER
    return room is None or isinstance(room, float)


def _can_tell(key: Key) -> bool:
    return is_tellable(key[0]) and is_tellable(key[1])


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _messages(keys: Iterable[Key]) -> Iterator[list[Key]]:
    """As many as one message may have."""
    some: list[Key] = []
    total = 0
    for key in keys:
        size = _most_bytes(key[0]) + _most_bytes(key[1])
        if len(some) >= MESSAGE_ROOMS or total + size > MESSAGE_BYTES:
            yield some
            some, total = [], 0
        some.append(key)
        total += size
    if some:
        yield some


def _most_bytes(value: Hashable) -> int:
    """What a namespace or a room takes in a message at the most; whoever comes first in a namespace pays for it too."""
    if isinstance(value, (str, bytes)):
        return 6 + len(value) * (1 if value.isascii() or isinstance(value, bytes) else 4)
    return 9


def _by_namespace(keys: Iterable[Key]) -> Rooms:
    found: Rooms = {}
    for namespace, room in keys:
        found.setdefault(namespace, []).append(room)
    return found


# ---------------------------------------------------------------------- a peer's rooms


@dataclass(slots=True, eq=False)
class Copy:
    """What a peer has said of its rooms, and the lease on that.

    Attributes:
        rooms: by namespace.
        link: the link that the last question went over. A lease is good over that one only.
        ends: when the lease does.
        attend_at: when to ask, if there is something to publish.
    """

    rooms: dict[str, set[Hashable]] = field(default_factory=dict)
    link: object = None
    ends: float = -math.inf
    attend_at: float = -math.inf
    _version: int | None = None
    _is_whole: bool = False
    _parts: int = 0
    _count: int = 0
    _number: int = 0
    _asked_at: float = -math.inf

    def ask(self, number: int, link: object, now: float) -> dict[str, Any]:
        """Data of an INTEREST_WANTED, to be sent at once over this link."""
        if link is not self.link:
            self.drop_lease()
        self.link, self._number, self._asked_at = link, number, now
        self.attend_at = now + ANSWER_SECONDS
        return {"number": number, "version": self._version if self._is_whole else None}

    def is_unused(self, now: float) -> bool:
        """Whether nobody has asked for long."""
        return now - self._asked_at >= FOLLOW_SECONDS

    def drop_lease(self) -> None:
        """Neither the lease nor the question under way counts any more."""
        self.ends = self.attend_at = -math.inf
        self._number = 0

    def take(self, data: dict[str, Any], now: float) -> None:
        """An INTEREST has come from the peer."""
        if data.get("part") == 0:
            self._begin(data["version"])
        elif self._version is None and "number" not in data:
            return  # of what nobody has here
        if not self._fits(data):
            self._void()
        elif "number" in data:
            self._answered(data["number"])
        elif "part" in data:
            self._parts += 1
            self.attend_at = max(self.attend_at, now + ANSWER_SECONDS if self._number else -math.inf)
            self._add(data["in"])
        else:
            self._version = data["version"]
            self._add(data["in"])
            self._remove(data["out"])

    def _fits(self, data: dict[str, Any]) -> bool:
        version: int = data["version"]
        if "number" in data:
            parts = 0 if self._is_whole else self._parts
            return version == self._version and parts == data["parts"]
        if "part" in data:
            return version == self._version and not self._is_whole and data["part"] == self._parts
        return version == (self._version or 0) + 1 and "all" not in data

    def _begin(self, version: int) -> None:
        self.ends = -math.inf
        self.rooms, self._count, self._parts = {}, 0, 0
        self._version, self._is_whole = version, False

    def _void(self) -> None:
        self.drop_lease()
        # Not at once, and not for every event: it may be because of what the peer is.
        self.attend_at = self._asked_at + LEASE_SECONDS / 2
        self.rooms, self._count, self._parts = {}, 0, 0
        self._version, self._is_whole = None, False

    def _answered(self, number: int) -> None:
        self._is_whole = True
        if number == self._number:
            self._number = 0
            self.ends = self._asked_at + LEASE_SECONDS - PACE_SECONDS
            self.attend_at = self._asked_at + LEASE_SECONDS / 2

    def _add(self, rooms: Rooms) -> None:
        for namespace, some in rooms.items():
            known = self.rooms.setdefault(namespace, set())
            before = len(known)
            known.update(some)
            self._count += len(known) - before
        if self._count > MAX_ROOMS:
            self._void()

    def _remove(self, rooms: Rooms) -> None:
        for namespace, some in rooms.items():
            known = self.rooms.get(namespace)
            if known is None:
                continue
            before = len(known)
            known.difference_update(some)
            self._count -= before - len(known)
            if not known:
                del self.rooms[namespace]


# ---------------------------------------------------------------------- reading messages


def _number(data: dict[str, Any], key: str) -> None:
    number = data.get(key)
    if type(number) is not int or not 0 <= number < MAX_NUMBER:
        raise MessageError(f"{key} must be a number from 0")


def _room_map(rooms: object) -> int:
    if type(rooms) is not dict:
        raise MessageError("rooms must be a map of arrays, by namespace")
    for namespace, some in rooms.items():
        if type(namespace) is not str or len(namespace) > MAX_ROOM_CHARS or type(some) is not list or not some:
            raise MessageError("rooms must be a map of arrays, by namespace")
        for room in some:
            if not is_tellable(room):
                raise MessageError("a room must be a short text or binary, or a number")
    return sum(map(len, rooms.values()))


def check_interest(data: dict[str, Any]) -> None:
    """An INTEREST is one of: a delta (`in` and `out`, or `all`), a part (`part` and `in`), an answer (`number`)."""
    _number(data, "version")
    if "number" in data:
        _number(data, "number")
        _number(data, "parts")
    elif data.get("all") is not True or "part" in data:
        count = _room_map(data.get("in"))
        if "part" in data:
            _number(data, "part")
        else:
            count += _room_map(data.get("out"))
        if count > MAX_MESSAGE_ROOMS:
            raise MessageError(f"an INTEREST has at most {MAX_MESSAGE_ROOMS} rooms")


def check_interest_wanted(data: dict[str, Any]) -> None:
    """The version is that of the asker's copy, nil if it has none."""
    _number(data, "number")
    if data.get("version") is not None:
        _number(data, "version")


def check_interest_known(data: dict[str, Any]) -> None:
    """The version that its sender has heard of."""
    _number(data, "version")
