"""A TCP proxy as a program, for networks that fail: `python -m tests.integration.proxy`.

It prints one JSON line with its control port, and does what ``POST /control`` asks for (see `Control`). A node
advertises a *route* of it as its own address; the route learns the node's real port once that is known.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer

__all__: list[str] = []

_CHUNK_BYTES = 64 * 1024
_RESET = struct.pack("ii", 1, 0)


class Connection:
    """One dialled connection and its counterpart to the target."""

    def __init__(self, route: Route, near: socket.socket, far: socket.socket) -> None:
        self._route = route
        self._sides = (near, far)
        self._fuse, route.fuse = route.fuse, None
        self._pumps = [gevent.spawn(self._pump, near, far), gevent.spawn(self._pump, far, near)]

    def serve(self) -> None:
        gevent.joinall(self._pumps, count=1)
        self.end(reset=False)

    def end(self, *, reset: bool) -> None:
        for side in self._sides:
            try:
                if reset:
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                else:
                    side.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            side.close()
        for pump in self._pumps:
            if pump is not gevent.getcurrent():
                pump.kill(block=False)

    def _burns(self, size: int) -> bool:
        if self._fuse is not None:
            self._fuse -= size
        return self._fuse is not None and self._fuse <= 0

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_CHUNK_BYTES):
                self._route.open.wait()
                if self._burns(len(data)):
                    self._route.resets += 1
                    self.end(reset=True)
                    return
                sink.sendall(data)
                self._route.bytes += len(data)
        except OSError:
            pass


class Route:
    """One listening port and where it leads."""

    def __init__(self) -> None:
        self.target = 0
        self.bytes = 0
        self.resets = 0
        self.accepted = 0
        self.fuse: int | None = None
        """After so many bytes the next connection is reset."""
        self.open = Event()
        self.open.set()
        self.connections: set[Connection] = set()
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.port: int = self._server.server_port

    def _serve(self, near: socket.socket, _address: Any) -> None:
        self.accepted += 1
        self.open.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            near.close()
            return
        connection = Connection(self, near, far)
        self.connections.add(connection)
        try:
            connection.serve()
        finally:
            self.connections.discard(connection)

    def reset(self) -> int:
        hit = list(self.connections)
        for connection in hit:
            connection.end(reset=True)
        self.resets += len(hit)
        return len(hit)


class Control:
    """What tests may ask for."""

    def __init__(self) -> None:
        self._routes: dict[int, Route] = {}
        self._resetter: gevent.Greenlet | None = None

    def route(self) -> int:
        """Open a route; returns its port."""
        route = Route()
        self._routes[route.port] = route
        return route.port

    def lead(self, port: int, target: int) -> None:
        """Tell where a route leads."""
        self._routes[port].target = target

    def reset(self, port: int) -> int:
        """Reset (RST) both sides of every connection of a route; returns how many there were."""
        return self._routes[port].reset()

    def stall(self, port: int) -> None:
        """Keep the connections of a route, and new ones, open and silent."""
        self._routes[port].open.clear()

    def forward(self, port: int) -> None:
        """Undo `stall`."""
        self._routes[port].open.set()

    def start_resets(self, count: int, low: float, high: float, seed: int) -> None:
        """Reset `count` connections, `low` to `high` seconds apart: most in use, some while they are made."""
        self._resetter = gevent.spawn(self._reset_often, count, random.Random(seed), low, high)

    def _reset_often(self, count: int, rng: random.Random, low: float, high: float) -> None:
        hits = 0
        while self._resets() < count:
            gevent.sleep(rng.uniform(low, high))
            for route in self._routes.values():
                hit = route.reset()
                hits += hit
                if hit and hits % 3 == 0:
                    # A handshake has about 1,500 bytes; behind it come the first events.
                    route.fuse = rng.randrange(1, 3000)

    def _resets(self) -> int:
        return sum(route.resets for route in self._routes.values())

    def state(self) -> dict[str, Any]:
        return {
            "resets": self._resets(),
            "resetting": self._resetter is not None and not self._resetter.dead,
            "routes": {
                str(port): {"open": len(route.connections), "bytes": route.bytes, "accepted": route.accepted}
                for port, route in self._routes.items()
            },
        }

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        body = json.dumps(
            {"value": getattr(self, asked["operation"])(*asked["arguments"], **asked["options"])}
        ).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def main() -> None:
    server = WSGIServer(("127.0.0.1", 0), Control(), log=None)
    server.start()
    print(json.dumps({"http_port": server.server_port}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
