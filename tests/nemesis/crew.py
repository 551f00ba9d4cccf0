"""Several nodes in one process: `python -m tests.nemesis.crew '{"nodes": 10, "discovery": "ws://...", "manager": {}}'`.

Each is a `GeventMeshManager` of a server of its own that nobody connects to. It prints one JSON line with its control
port, and tells what ``POST /control`` asks for (see `Crew`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from time import monotonic
from typing import Any

import gevent
import psutil
import socketio
from gevent.pywsgi import WSGIServer

from gevent_mesh import GeventMeshManager

__all__: list[str] = []


class Crew:
    """What tests may ask for."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._managers = [self._node(options) for _ in range(options["nodes"])]
        self._whole_at: float | None = None

    def _node(self, options: dict[str, Any]) -> GeventMeshManager:
        manager = GeventMeshManager(options["discovery"], ws_port=0, **options["manager"])
        socketio.Server(async_mode="gevent", client_manager=manager)
        return manager

    def start(self, peers: int) -> float:
        """Have all of them join at once, and note when each has so many peers. Returns when, by the machine's clock."""
        began = monotonic()
        for manager in self._managers:
            manager.start()
        gevent.spawn(self._watch, peers)
        return began

    def _watch(self, peers: int) -> None:
        while self._whole_at is None:
            if all(self._links(manager) == peers for manager in self._managers):
                self._whole_at = monotonic()
            gevent.sleep(0.01)

    def _links(self, manager: GeventMeshManager) -> int:
        mesh = manager.mesh
        return 0 if mesh is None else len(mesh.table.alive())

    def _is_registered(self, manager: GeventMeshManager) -> bool:
        mesh = manager.mesh
        return mesh is not None and all(client.connected for client in mesh._discovery)

    def state(self) -> dict[str, Any]:
        counters = [asdict(manager.mesh.counters) for manager in self._managers if manager.mesh is not None]
        return {
            "whole_at": self._whole_at,
            "links": [self._links(manager) for manager in self._managers],
            "links_down": sum(each["links_down"] for each in counters),
            "registered": sum(self._is_registered(manager) for manager in self._managers),
            "rss": psutil.Process().memory_info().rss,
            "cpu_seconds": sum(psutil.Process().cpu_times()[:2]),
        }

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        value = getattr(self, asked["operation"])(*asked["arguments"], **asked["options"])
        body = json.dumps({"value": value}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def main() -> None:
    server = WSGIServer(("127.0.0.1", 0), Crew(json.loads(sys.argv[1])), log=None)
    # Not `start`: the nodes are to join when the test says so.
    server.belongs_to_a_node = True
    server.start()
    print(json.dumps({"http_port": server.server_port}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
