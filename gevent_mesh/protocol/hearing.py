"""Hearing: whether what a peer sends gets through to the services of this node.

Rules:

- That bytes come, and heartbeats among them, proves a socket and a reader, and not that messages are acted on.
- A heartbeat says how many messages its sender had sent before it, and comes behind them: what was sent between two
  heartbeats has been handed on when the second one is read. If some were sent and no service has acted on a single one,
  this node is deaf to that peer. No clock is asked, so a slow network, a backlog or a stopped process is no deafness.
- So that there always is something between two heartbeats, each heartbeat is answered with a PROBE: a message like any
  other, which asks for nothing.
- A node that is deaf is so until a service has acted on something, whatever becomes of the link.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Hearing"]


@dataclass(slots=True)
class Hearing:
    """What is heard of one peer.

    Attributes:
        deaf_since: when it was found that nothing gets through; None while something does.
    """

    deaf_since: float | None = None
    _acted_on: int = 0
    _acted_on_then: int = 0
    _told: int | None = None
    _dropped: int = 0

    def begin(self) -> None:
        """A link is up. Its first heartbeat is where counting begins: numbers may have been given up before it."""
        self._told, self._dropped = None, 0

    def acted(self) -> None:
        """A service has acted on a message of the peer."""
        self._acted_on += 1
        self.deaf_since = None

    def heartbeat(self, sent: int, dropped: int, now: float) -> bool:
        """The peer says how many messages it had sent before this heartbeat.

        Args:
            sent: the number of the last one.
            dropped: how many messages of this link were not worth handing on, in all.

        Returns:
            Whether nothing of what it sent since its last heartbeat has got through.
        """
        before, self._told = self._told, sent
        acted_on_then, self._acted_on_then = self._acted_on_then, self._acted_on
        dropped_now, self._dropped = dropped - self._dropped, dropped
        if before is None or sent - before <= dropped_now or self._acted_on > acted_on_then:
            return False
        if self.deaf_since is None:
            self.deaf_since = now
        return True
