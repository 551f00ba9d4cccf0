"""Whom something is for: rooms to be in, and rooms not to be in.

To python-socketio, no room means everybody and an empty list of rooms means nobody; a sid is a room as well.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .protocol import messages

__all__ = ["Selection", "members_of"]


@dataclass(slots=True)  # not frozen: one is made for each event, and would take three times as long
class Selection:
    """Clients of one namespace.

    Attributes:
        namespace: the Socket.IO namespace.
        rooms: members of any of these; everybody when empty.
        exclude: and of none of these.
        is_empty: nobody can be meant.
    """

    namespace: str
    rooms: list[Hashable]
    exclude: list[Hashable]
    is_empty: bool = False

    @classmethod
    def of(cls, namespace: str | None, room: Any = None, exclude: Any = None) -> Selection:
        """What the parameters of python-socketio's `emit`, and ours, stand for: one room, several, or None.

        Raises:
            TypeError: the namespace is no text.
        """
        if namespace is not None and not isinstance(namespace, str):
            raise TypeError(f"a namespace must be text, not {namespace!r}")
        rooms = _several(room)
        # None is no client, but it is the name of the room of everybody.
        left_out = [one for one in _several(exclude) if one is not None]
        return cls(namespace or "/", rooms, left_out, is_empty=room is not None and not rooms)

    @property
    def opts(self) -> dict[str, Any]:
        """The form that it has in messages."""
        return messages.options(self.rooms, self.exclude)


def members_of(
    known: Mapping[Hashable, Mapping[str, str]], rooms: Sequence[Hashable], exclude: Collection[Hashable]
) -> Mapping[str, str]:
    """Clients of this node in any of `rooms` (all when empty) and in none of `exclude`.

    Args:
        known: a namespace's rooms, as python-socketio keeps them: members by name, and of each its Engine.IO sid.

    Returns:
        The Engine.IO sids by sid. It may be the table itself: it is to be copied before anybody else runs.
    """
    if len(rooms) < 2:
        members = known.get(rooms[0] if rooms else None, _NOBODY)
    else:
        members = {sid: eio_sid for room in rooms for sid, eio_sid in known.get(room, _NOBODY).items()}
    if not exclude or not members:
        return members
    skipped = {sid for room in exclude for sid in (room, *known.get(room, ()))}
    return {sid: eio_sid for sid, eio_sid in members.items() if sid not in skipped}


_NOBODY: Mapping[str, str] = {}


def _several(room: Any) -> list[Hashable]:
    if room is None:
        return []
    if isinstance(room, (str, bytes)) or not isinstance(room, Iterable):
        return [room]
    return list(room)
