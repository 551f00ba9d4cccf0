"""Looks after the links that are up: ends those whose reader or writer does not come back, without it.

Rules:

- Whoever stands at the same place for `looks` looks in a row is stuck. Looks are counted, not seconds: a process that
  stood still has looked at nothing meanwhile, and blames nobody.
- A reader is at a place while it has a message, or while its link is over and it has not returned. A writer is at one
  while it has something to send and the socket would take it: a slow peer is no fault of ours.
- A reader that is stuck is left behind with its message (see `Link.leave_behind`), and where it stands is logged. At
  most `MAX_LEFT_BEHIND` are kept; for one more the oldest is killed, and what is left of its message is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

import gevent

from .link import Link

__all__ = ["MAX_LEFT_BEHIND", "Watch"]

MAX_LEFT_BEHIND = 8
"""Readers that may wait in their messages at a time. So many do not come by chance: it is time for a new process."""
LOOKS_AT_CUT = 2
"""A reader whose link is cut comes back at once."""


class _Places(NamedTuple):
    reader: float | None
    writer: int | None


class Watch:
    """What the looks at the links of one mesh have found.

    Args:
        looks: after how many looks at the same place somebody is stuck.
        logger: where to report.
    """

    def __init__(self, looks: int, logger: logging.Logger) -> None:
        self._looks = looks
        self._logger = logger
        self._seen: dict[Link, tuple[_Places, int, int]] = {}
        self._left_behind: list[Link] = []

    @property
    def left_behind(self) -> int:
        """How many readers have not come back from their messages."""
        return sum(_is_running(link) for link in self._left_behind)

    def look(self, links: Iterable[Link]) -> None:
        """Look at all links that are up. Never waits."""
        seen: dict[Link, tuple[_Places, int, int]] = {}
        for link in links:
            before, reader_looks, writer_looks = self._seen.get(link, (_Places(None, None), 0, 0))
            places = _Places(link.reader_at, link.writer_at)
            reader_looks = _looks(before.reader, places.reader, reader_looks)
            writer_looks = _looks(before.writer, places.writer, writer_looks)
            seen[link] = places, reader_looks, writer_looks
            if reader_looks >= (LOOKS_AT_CUT if link.is_cut else self._looks):
                del seen[link]
                self._heal(link, "its reader")
            elif writer_looks >= self._looks:
                del seen[link]
                self._heal(link, "its writer")
        self._seen = seen

    def _heal(self, link: Link, who: str) -> None:
        self._logger.error(
            "%r is stuck: %s does not come back. Its peer gets a new link.\n%s", link, who, link.stacks()
        )
        self.keep(link)
        # The end of a link lets others run; we are looking at all of them.
        gevent.spawn(link.leave_behind, f"{who} was stuck")

    def keep(self, link: Link) -> None:
        """Remember a link that is to be left behind."""
        self._left_behind = [old for old in self._left_behind if _is_running(old)]
        if link not in self._left_behind:
            self._left_behind.append(link)
        if len(self._left_behind) > MAX_LEFT_BEHIND:
            oldest = self._left_behind.pop(0)
            self._logger.error("too many readers do not come back: that of %r is killed, in its message", oldest)
            _kill(oldest)

    def end(self) -> None:
        """The mesh is over, and whoever is left behind with it."""
        for link in self._left_behind:
            _kill(link)


def _looks(before: float | None, now: float | None, count: int) -> int:
    """How many looks in a row have found somebody where it is now."""
    if now is None:
        return 0
    return count + 1 if now == before else 1


def _is_running(link: Link) -> bool:
    return link.reader is not None and not link.reader.dead


def _kill(link: Link) -> None:
    if link.reader is not None:
        link.reader.kill(block=False)
