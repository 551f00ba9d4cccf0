"""A node with clients and a peer, and no network: what the peer says is acted on for real."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent

from gevent_mesh import GeventMeshManager
from gevent_mesh.errors import MessageError
from gevent_mesh.protocol.frames import Batch, Role
from gevent_mesh.protocol.link import Proven
from gevent_mesh.protocol.messages import ClusterMessage
from tests.paper import PaperNode
from tests.protocol.support import Side, dialer, exchange, listener, wire

__all__ = ["act", "close"]

TURNS = 5


class _Loud(logging.Handler):
    """Errors that are only logged are errors all the same."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.seen.append(record.getMessage() + "\n" + logging.Formatter().formatException(record.exc_info))


@contextlib.contextmanager
def _loud() -> Iterator[None]:
    """Raise what is logged with a traceback, or ends a greenlet."""
    handler, hub = _Loud(), gevent.get_hub()
    logger, handle_error = logging.getLogger("gevent_mesh"), hub.handle_error
    logger.addHandler(handler)
    hub.handle_error = lambda _context, kind, value, _tb: handler.seen.append(f"a greenlet ended with {kind}: {value}")
    try:
        yield
    finally:
        logger.removeHandler(handler)
        hub.handle_error = handle_error
    if handler.seen:
        raise RuntimeError("\n".join(handler.seen))


class _Peered(Side):
    """The listening end of a link that a node has."""

    def __init__(self, node: PaperNode, side: Side) -> None:
        super().__init__(side.protocol, side.session)
        self._node = node
        self.peer: Any = None

    def receive(self, data: bytes, now: float = 0.0) -> None:
        mesh = self._node.manager.mesh
        assert mesh is not None
        for found in self.protocol.receive(data, now):
            if isinstance(found, Proven):
                self.peer, _ = mesh.table.link_up(self.protocol, found.peer, now)
                mesh._owner.on_linked(self.peer)
            elif isinstance(found, ClusterMessage):
                with contextlib.suppress(MessageError):
                    mesh._owner.on_message(self.peer, found)


_node: list[PaperNode] = []


def _paper_node() -> PaperNode:
    """One for all inputs: it may keep things for a while, but never break."""
    if not _node:
        node = PaperNode(GeventMeshManager([], callback_timeout=1.0), namespaces=["/", "/other"])
        node.manager.on("event", lambda *arguments: list(arguments))
        node.manager.presence().on_join(lambda _user: None)
        node.connects("one")
        node.manager.enter_room(node.connects("two"), "/", "room")
        _node.append(node)
    return _node[0]


def close() -> None:
    """The node that acts is not needed any more."""
    for node in _node:
        node.manager.stop(0)
    _node.clear()
    gc.collect()


def act(body: bytes, *, is_emitter: bool) -> None:
    """Have a node act on the messages of a BATCH.

    Raises:
        FrameError: they cannot be told apart.
    """
    node = _paper_node()
    mesh = node.manager.mesh
    assert mesh is not None
    now = monotonic()
    there = dialer(target=None, role=Role.EMITTER if is_emitter else Role.NODE, now=now)
    here = _Peered(node, listener(now=now))
    with _loud():
        exchange(there, here, now=now)
        try:
            here.receive(wire(Batch(1, 0, body), mask=True), now)
            for _ in range(TURNS):
                gevent.sleep(0)
        finally:
            mesh.table.link_down(here.protocol, now)
            mesh._report(mesh.table.left(here.peer.uid))
            mesh._tell_lapsed()
            mesh.table.members._gone.clear()
            node.sent.clear()
