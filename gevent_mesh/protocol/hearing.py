"""Hearing: whether what a peer sends gets through to the services of this node.

Rules:

- That bytes come proves a socket and a reader, and not that anything is acted on. So every heartbeat is handed to a
  service, by the same way as messages are, and whoever acts on anything of the peer says so (`acted`).
- A heartbeat comes behind the messages that were sent before it: what came between two heartbeats has been handed on
  when the second one is read.
- This node is deaf to a peer when no service has acted on its heartbeat, or on any of the messages before it. No clock
  is asked: a slow network, a backlog or a process that was stopped is no deafness.
- Nor is the peer asked, or it could make this node look ill: what has come is counted here, and what no service is
  there for counts as acted on. Who claims to have sent more than has come ends its link (see `link`).
- It remains so, whatever becomes of the link, until the second heartbeat of a link finds all in order.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Hearing"]


@dataclass(slots=True)
class Hearing:
    """What is heard of one peer.

    Attributes:
        deaf_since: when it was found that nothing gets through; None while all is in order.
    """

    deaf_since: float | None = None
    _came: bool = False
    _acted: bool = False
    _has_missed: bool = False
    _is_known: bool = False

    def begin(self) -> None:
        """A link is up."""
        self._came = self._acted = self._is_known = False

    def came(self) -> None:
        """A message has come, and is about to be handed on."""
        self._came = True

    def acted(self) -> None:
        """A service has acted on a message, or on a heartbeat; or there is none that would."""
        self._acted = True

    def heartbeat(self) -> None:
        """A heartbeat has come, and is about to be handed on."""
        self._has_missed = self._came and not self._acted
        self._came = self._acted = False

    def judge(self, now: float) -> bool:
        """The heartbeat has been handed on. Returns whether this node is deaf to the peer."""
        is_deaf = self._has_missed or not self._acted
        was_known, self._is_known, self._acted = self._is_known, True, False
        if is_deaf:
            self.deaf_since = now if self.deaf_since is None else self.deaf_since
        elif was_known:
            self.deaf_since = None
        return is_deaf
