"""Hearing: whether what a peer sends gets through to the services of this node.

Rules:

- That bytes come proves a socket and a reader, and not that anything is acted on. So every heartbeat is handed to a
  service, by the same way as messages are, and whoever acts on anything of the peer says so (`acted`).
- A heartbeat says how many messages its sender had sent before it, and comes behind them: what was sent between two
  heartbeats has been handed on when the second one is read.
- This node is deaf to a peer when no service has acted on its heartbeat, or on any of the messages before it. No clock
  is asked: a slow network, a backlog or a process that was stopped is no deafness.
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
    _acted: int = 0
    _sent: int | None = None
    _dropped: int = 0
    _has_missed: bool = False
    _is_known: bool = False

    def begin(self) -> None:
        """A link is up. Its first heartbeat is where counting begins: numbers may have been given up before it."""
        self._acted, self._sent, self._dropped, self._is_known = 0, None, 0, False

    def acted(self) -> None:
        """A service has acted on a message, or on a heartbeat."""
        self._acted += 1

    def heartbeat(self, sent: int | None, dropped: int) -> None:
        """A heartbeat has come, and is about to be handed on.

        Args:
            sent: the number of the last message that the peer had sent before, if it says so.
            dropped: how many messages of this link were not worth handing on, in all.
        """
        before, self._sent = self._sent, sent
        dropped_now, self._dropped = dropped - self._dropped, dropped
        were_sent = before is not None and sent is not None and sent - before > dropped_now
        self._has_missed = were_sent and not self._acted
        self._acted = 0

    def judge(self, now: float) -> bool:
        """The heartbeat has been handed on. Returns whether this node is deaf to the peer."""
        is_deaf = self._has_missed or not self._acted
        was_known, self._is_known, self._acted = self._is_known, True, 0
        if is_deaf:
            self.deaf_since = now if self.deaf_since is None else self.deaf_since
        elif was_known:
            self.deaf_since = None
        return is_deaf
