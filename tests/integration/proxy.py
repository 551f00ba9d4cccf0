"""A TCP proxy as a program, for networks that fail: `python -m tests.integration.proxy`.

It prints one JSON line with its control port, and does what ``POST /control`` asks for (see `Control`). A node
advertises a *route* of it as its own address; the route learns the node's real port and uid once they are known.

A connection has two *directions*: from the node that dialled to the one that the route leads to, and back. Each
direction has a state, its `Fault`. It goes for all connections between the two, whoever dialled, and for those to come.
Who has dialled is read from its first frame: what comes before that, the upgrade, is only held up by what is said of
any node.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer

__all__: list[str] = []

_CHUNK_BYTES = 64 * 1024
_THROTTLED_SLICE_SECONDS = 0.1
_RESET = struct.pack("ii", 1, 0)
_HELLO = re.compile(rb"\r\n\r\n.*?([0-9a-f]{16})", re.DOTALL)
"""What nodes say first: the uid comes first in it, and between them nothing is masked."""
_STRANGER = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls bytes, and the ends of connections, in one direction.

    Attributes:
        holds: they wait: packets are dropped, and TCP sends them again until the fault is over.
        swallows: they are gone and nobody hears of it, as behind a router that has forgotten the connection; that
            connection gets nothing through in this direction any more, also when the fault is over.
        delay_seconds: how much later they arrive.
        bytes_per_second: how much gets through; 0 for no limit.
    """

    holds: bool = False
    swallows: bool = False
    delay_seconds: float = 0.0
    bytes_per_second: int = 0

    @property
    def read_bytes(self) -> int:
        return int(self.bytes_per_second * _THROTTLED_SLICE_SECONDS) or _CHUNK_BYTES

    def seconds_for(self, size: int) -> float:
        return self.delay_seconds + (size / self.bytes_per_second if self.bytes_per_second else 0.0)


_NONE = Fault()
_HELD = Fault(holds=True)


class Network:
    """The state of each direction. None in a direction stands for any node; what is said of both nodes goes first."""

    def __init__(self) -> None:
        self._faults: dict[tuple[str | None, str | None], Fault] = {}
        self._changed = Event()

    def fault(self, source: str, sink: str) -> Fault:
        for direction in ((source, sink), (source, None), (None, sink)):
            if direction in self._faults:
                return self._faults[direction]
        return _NONE

    def put(self, source: str | None, sink: str | None, fault: Fault) -> None:
        self._faults[source, sink] = fault
        self._tell()

    def clear(self, source: str | None, sink: str | None) -> None:
        self._faults.pop((source, sink), None)
        self._tell()

    def clear_all(self) -> None:
        self._faults.clear()
        self._tell()

    def wait_for_change(self) -> None:
        self._changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, Event()
        changed.set()


class Direction:
    """One direction of one connection."""

    def __init__(self, network: Network, source: str, sink: str) -> None:
        self._network = network
        self.source, self.sink = source, sink
        self.is_lost = False
        """Nothing comes through any more."""

    @property
    def fault(self) -> Fault:
        return self._network.fault(self.source, self.sink)

    def passes(self, size: int = 0) -> bool:
        """Wait as long as so many bytes, or an end, take in this direction.

        Returns:
            Whether they come through at all.
        """
        while not self.is_lost and (fault := self.fault).holds:
            self._network.wait_for_change()
        self.is_lost = self.is_lost or fault.swallows
        if self.is_lost:
            return False
        if (seconds := fault.seconds_for(size)) > 0:
            gevent.sleep(seconds)
        return not self.is_lost


@dataclass(slots=True)
class Fuse:
    """Ends one connection after so many bytes of both directions, in the middle of whatever that is."""

    left_bytes: int
    resets: bool

    def passes(self, data: bytes) -> bytes:
        """What of this still comes through."""
        passed = data[: self.left_bytes]
        self.left_bytes -= len(passed)
        return passed


class Connection:
    """A dialled connection (`near`) and its counterpart to the target (`far`)."""

    def __init__(self, route: Route, near: socket.socket, far: socket.socket, there: Direction) -> None:
        self._route = route
        self._near, self._far = near, far
        for side in (near, far):
            # No delays but those that are asked for.
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._fuse, route.fuse = route.fuse, None
        self._there, self._back = there, Direction(route.network, there.sink, there.source)
        self._head = b""
        self._pumps = [
            gevent.spawn(self._pump, near, far, self._there),
            gevent.spawn(self._pump, far, near, self._back),
        ]

    def serve(self) -> None:
        gevent.joinall(self._pumps)
        self.end(reset=False)

    def end(self, *, reset: bool) -> None:
        """End both sides at once, whatever the network's state."""
        for side in (self._near, self._far):
            _end(side, reset=reset)
            side.close()
        for pump in self._pumps:
            if pump is not gevent.getcurrent():
                pump.kill(block=False)

    def half_open(self, *, dialer_knows: bool) -> None:
        """Reset one side. The other one never hears of it, and gets nothing any more."""
        self._there.is_lost = self._back.is_lost = True
        _end(self._near if dialer_knows else self._far, reset=True)

    def _pump(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        reset = False
        try:
            while data := source.recv(direction.fault.read_bytes):
                if source is self._near and self._route.uid and direction.source == _STRANGER:
                    self._identify(data)
                if direction.passes(len(data)) and not self._pass_on(data, sink):
                    return
        except OSError:
            reset = True
        if direction.passes():
            _end(sink, reset=reset)

    def _identify(self, data: bytes) -> None:
        self._head = (self._head + data)[:_CHUNK_BYTES]
        found = _HELLO.search(self._head)
        if found is not None:
            uid = found[1].decode()
            self._there.source = self._back.sink = uid
            self._route.dialled.append((monotonic(), uid))

    def _pass_on(self, data: bytes, sink: socket.socket) -> bool:
        """Returns whether the connection lives on."""
        fuse = self._fuse
        passed = data if fuse is None else fuse.passes(data)
        sink.sendall(passed)
        self._route.bytes += len(passed)
        if fuse is None or fuse.left_bytes > 0:
            return True
        self._route.reset_at += [monotonic()] * fuse.resets
        self.end(reset=fuse.resets)
        return False


class Route:
    """One listening port and where it leads."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.target = 0
        self.leads = Event()
        """Somewhere."""
        self.bytes = 0
        self.reset_at: list[float] = []
        """By the clock that all processes of a machine share."""
        self.dialled: list[tuple[float, str]] = []
        """When, by that clock, and by whom."""
        self.fuse: Fuse | None = None
        """For the next connection."""
        self.receive_buffer_bytes = 0
        """Of the sockets that read what nodes send; 0 for the system's."""
        self.connections: set[Connection] = set()
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.port: int = self._server.server_port
        self.uid = ""
        """Of the node that is there, if it is one."""

    @property
    def name(self) -> str:
        return self.uid or str(self.port)

    def narrow(self, receive_buffer_bytes: int) -> None:
        self.receive_buffer_bytes = receive_buffer_bytes
        # What is accepted has the size of the listening socket: the window is agreed upon before that.
        self._server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)

    def _serve(self, near: socket.socket, _address: Any) -> None:
        self.leads.wait()
        there = Direction(self.network, _STRANGER, self.name)
        if not there.passes():
            _read_away(near)
            return
        far = self._connect()
        if far is None:
            _end(near, reset=True)
            return
        connection = Connection(self, near, far, there)
        self.connections.add(connection)
        try:
            connection.serve()
        finally:
            self.connections.discard(connection)

    def _connect(self) -> socket.socket | None:
        far = socket.socket()
        if self.receive_buffer_bytes:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer_bytes)
        try:
            far.connect(("127.0.0.1", self.target))
        except OSError:
            far.close()
            return None
        return far

    def reset(self) -> int:
        hit = list(self.connections)
        for connection in hit:
            connection.end(reset=True)
        self.reset_at += [monotonic()] * len(hit)
        return len(hit)


def _end(side: socket.socket, *, reset: bool) -> None:
    try:
        if reset:
            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            side.close()
        else:
            side.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _read_away(side: socket.socket) -> None:
    try:
        while side.recv(_CHUNK_BYTES):
            pass
    except OSError:
        pass


class Control:
    """What tests may ask for."""

    def __init__(self) -> None:
        self.network = Network()
        self._routes: dict[int, Route] = {}
        self._resetter: gevent.Greenlet | None = None

    def route(self) -> int:
        """Open a route; returns its port."""
        route = Route(self.network)
        self._routes[route.port] = route
        return route.port

    def lead(self, port: int, target: int, uid: str = "") -> None:
        """Tell where a route leads, and which node is there."""
        route = self._routes[port]
        route.target, route.uid = target, uid
        route.leads.set()

    def fault(self, sources: list[str], sinks: list[str], **fault: Any) -> None:
        """Give the directions from some nodes to others a state (see `Fault`)."""
        for source in sources:
            for sink in sinks:
                self.network.put(source, sink, Fault(**fault))

    def repair(self) -> None:
        """No direction has a fault any more."""
        self.network.clear_all()

    def stall(self, port: int) -> None:
        """Hold all that comes from whoever is behind a route, or goes there."""
        name = self._routes[port].name
        self.network.put(name, None, _HELD)
        self.network.put(None, name, _HELD)

    def forward(self, port: int) -> None:
        """Undo `stall`."""
        name = self._routes[port].name
        self.network.clear(name, None)
        self.network.clear(None, name)

    def reset(self, port: int) -> int:
        """Reset (RST) both sides of every connection of a route; returns how many there were."""
        return self._routes[port].reset()

    def half_open(self, port: int, *, dialer_knows: bool = True) -> int:
        """Reset one side of every connection of a route; the other side never hears of it. Returns how many."""
        hit = list(self._routes[port].connections)
        for connection in hit:
            connection.half_open(dialer_knows=dialer_knows)
        return len(hit)

    def cut_next(self, port: int, after_bytes: int, *, reset: bool = False) -> None:
        """End the next connection of a route after so many bytes: truncated in good order, or reset."""
        self._routes[port].fuse = Fuse(after_bytes, reset)

    def narrow(self, port: int, receive_buffer_bytes: int) -> None:
        """Give whoever reads for a route such a receive buffer."""
        self._routes[port].narrow(receive_buffer_bytes)

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
                    route.fuse = Fuse(rng.randrange(1, 3000), resets=True)

    def _resets(self) -> int:
        return sum(len(route.reset_at) for route in self._routes.values())

    def state(self) -> dict[str, Any]:
        return {
            "resets": self._resets(),
            "reset_at": sorted(at for route in self._routes.values() for at in route.reset_at),
            "resetting": self._resetter is not None and not self._resetter.dead,
            "routes": {
                str(port): {
                    "open": len(route.connections),
                    "bytes": route.bytes,
                    "dialled": route.dialled,
                }
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
