"""Nodes whose clients exist on paper only: what is sent to them is noted, and tests answer for them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import socketio

from gevent_mesh import GeventMeshManager
from gevent_mesh_discovery import DiscoveryServer
from tests.support import eventually

__all__ = ["PaperNode", "paper_mesh"]


class PaperNode:
    """A real node of the mesh, without a network between it and its clients."""

    def __init__(self, manager: GeventMeshManager, *, joins: bool = True, **options: Any) -> None:
        self.manager = manager
        self.server = socketio.Server(async_mode="gevent", client_manager=manager, **options)
        self.sent: list[tuple[str, Any]] = []
        self.server._send_eio_packet = lambda eio_sid, packet: self.sent.append((eio_sid, packet.data))
        self.server.eio.send = lambda eio_sid, data: self.sent.append((eio_sid, data))
        if joins:
            self.manager.start()

    def connects(self, eio_sid: str, *, namespace: str = "/", auth: Any = None, **environ: Any) -> str:
        """A client connects to a namespace. Returns its sid."""
        where = "" if namespace == "/" else f"{namespace},"
        if eio_sid not in self.server.environ:
            self.server._handle_eio_connect(eio_sid, environ)
        self.server._handle_eio_message(eio_sid, f"0{where}{'' if auth is None else json.dumps(auth)}")
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace)
        assert sid is not None
        self.sent.clear()
        return str(sid)

    def leaves(self, eio_sid: str) -> None:
        """A client's connection is gone."""
        self.server._handle_eio_disconnect(eio_sid, "transport close")

    def gets(self, text: str) -> None:
        """Wait until a client gets a packet that has this in it."""
        eventually(lambda: any(text in str(packet) for _, packet in self.sent))

    def answers(self, eio_sid: str, event: str, *values: Any) -> None:
        """A client acknowledges an event, once that has come."""
        packet = eventually(lambda: next((p for to, p in self.sent if to == eio_sid and event in str(p)), None))
        number = str(packet).partition("[")[0].removeprefix("2")
        self.server._handle_eio_message(eio_sid, f"3{number}{json.dumps(values)}")


@contextlib.contextmanager
def paper_mesh(count: int, **options: Any) -> Iterator[list[PaperNode]]:
    """Some nodes that are linked, and their discovery."""
    discovery = DiscoveryServer(port=0)
    discovery.start()
    nodes: list[PaperNode] = []
    try:
        for _ in range(count):
            nodes.append(PaperNode(GeventMeshManager(discovery.url, ws_port=0, **options)))
        for node in nodes:
            assert node.manager.wait_for_peers(count - 1)
        yield nodes
    finally:
        for node in nodes:
            node.manager.stop(0.2)
        discovery.stop()
