"""A service: a part of a node that talks with the same part of other nodes.

Rules:

- `Node` hands each message to the one service that names its type, in the reader of the link that it came over. A
  handler must not wait for anybody and must not run application code: both go into greenlets of their own. Giving way
  now and then during long work (`gevent_mesh.net.pause.in_slices`) is allowed, and keeps what comes behind in order.
- The handler of BROADCAST neither waits nor gives way without calling `settle` first, and so may put off what it does
  until then. It is called before anybody else runs, and before a message of any other type is handed on.
- The other methods are called where something happened and must not wait either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .protocol.messages import ClusterMessage, MessageType
from .protocol.peers import Peer

__all__ = ["Handler", "Service"]

Handler = Callable[[Peer, ClusterMessage], None]


class Service:
    """What a service may override; everything does nothing by default."""

    @property
    def handlers(self) -> Mapping[MessageType, Handler]:
        """What to do with the messages of each type that this service answers for."""
        return {}

    def linked(self, peer: Peer) -> None:
        """A link to this peer is up. Nothing that came over it has been handed on yet."""

    def lapsed(self, peer: Peer) -> None:
        """This peer does not count as present any more (see `gevent_mesh.protocol.peers`), until it is linked again."""

    def left(self) -> None:
        """This node is not in the mesh any more: no peer is present, until this node has joined again."""

    def settle(self) -> None:
        """Do now what was put off, in a link's reader: others are about to run. It may give way."""

    def client_gone(self, sid: str, namespace: str) -> None:
        """A client of this node is not connected to this namespace any more."""

    def sweep(self, now: float) -> None:
        """About once a second, with the monotonic time: free what is overdue."""
