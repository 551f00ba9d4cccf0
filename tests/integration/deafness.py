"""Breaks the hearing of a node from inside, with all of its sockets open."""

from __future__ import annotations

from typing import Any

from gevent.event import Event

from gevent_mesh import GeventMeshManager
from gevent_mesh.net.link import Link
from gevent_mesh.protocol.messages import MessageType

__all__ = ["Deafness"]


class Deafness:
    """What can be done to a node: each public method, by its name.

    Args:
        manager: of the node.
    """

    def __init__(self, manager: GeventMeshManager) -> None:
        self._node = manager._node
        self._handlers = self._node._handlers
        self._released = Event()

    def _links(self) -> list[Link]:
        assert self._node.mesh is not None
        return list(self._node.mesh._links.values())

    def kill_readers(self) -> None:
        """An exception comes up in every reader."""
        for link in self._links():
            assert link.reader is not None
            link.reader.kill(RuntimeError("a fault in a reader"), block=False)

    def hang_readers(self) -> None:
        """What comes over the present links is never read."""
        for link in self._links():
            link.transport.recv = lambda _size=None: Event().wait()  # type: ignore[method-assign,assignment]

    def hang_writers(self) -> None:
        """What is sent over the present links never leaves."""
        for link in self._links():
            link.transport.send = lambda _data: Event().wait()  # type: ignore[method-assign,assignment]

    def block_a_handler(self) -> None:
        """The next event blocks whoever hands it on, until `release`."""
        hand_on = self._node.hand_on

        def blocking(peer: Any, message: Any) -> None:
            if message.type is MessageType.BROADCAST:
                del self._node.hand_on  # that of its class is there again
                self._released.wait()
            hand_on(peer, message)

        self._node.hand_on = blocking  # type: ignore[method-assign]

    def lose_services(self) -> None:
        """No service gets anything, until `release`."""
        self._handlers, self._node._handlers = self._node._handlers, {}

    def release(self) -> None:
        self._node._handlers = self._handlers
        self._released.set()

    def left_behind(self) -> int:
        """How many readers have not come back."""
        assert self._node.mesh is not None
        return self._node.mesh.watch.left_behind
