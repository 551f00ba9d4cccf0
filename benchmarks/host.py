"""A server process for what happens on one node: `python -m benchmarks.host CONTENDER`.

The same for all contenders but for the client manager: pywsgi with gevent-websocket, one namespace, and a connect
handler that puts each client into three rooms: one of all, one of a hundred, one of its own. Nothing is patched. It
says ``listening on PORT`` and is told over HTTP what to do; answers are JSON.

Engine.IO's own pings are put off unless ``--pings``: they are the same for everybody, and would blur the rest.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

import click
import gevent
import psutil
import socketio
from gevent.pywsgi import WSGIServer
from geventwebsocket.handler import WebSocketHandler

from gevent_mesh import GeventMeshManager
from gevent_mesh.protocol.websocket import Opcode, frame

from .planning import raise_descriptor_limit
from .wire import padding

__all__ = ["ROOM_CLIENTS", "main"]

BACKLOG = 4096
ROOM_CLIENTS = 100
LONG_SECONDS = 3600
DRAIN_RATE = 100_000.0
SETTLE_SECONDS = 0.005
WATCH_SECONDS = 0.001


class Host:
    """The WSGI application that is told what to do. Each request runs in a greenlet of its own.

    Args:
        nodes: among how many such processes the rooms of a hundred are spread.
    """

    def __init__(self, sio: Any, nodes: int) -> None:
        self._sio = sio
        self._nodes = nodes
        self._padding = padding()
        self._emitted = 0
        self._entered = 0
        self._parts = 0
        self._watch: Watch | None = None
        self.open: dict[Any, None] = {}
        sio.on("connect", self._enter)

    def _enter(self, sid: str, _environ: dict[str, Any]) -> None:
        number, self._entered = self._entered, self._entered + 1
        for room in ("all", f"hundred {number * self._nodes // ROOM_CLIENTS}", f"own {number}"):
            self._sio.enter_room(sid, room)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        action = getattr(self, "do_" + environ["PATH_INFO"][1:])
        answer = action(**{name: float(value) for name, value in parse_qsl(environ["QUERY_STRING"])})
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    # ------------------------------------------------------------------ what it can be told

    def do_cost(self) -> dict[str, float]:
        """What this process has cost so far."""
        return {"cpu_seconds": time.process_time(), "resident_bytes": psutil.Process().memory_info().rss}

    def do_state(self) -> dict[str, int]:
        """Who is connected."""
        peers = sum(peer.state == "alive" for peer in self._peers())
        return {"clients": len(self._sio.eio.sockets), "peers": peers}

    def _peers(self) -> Iterable[Any]:
        manager = self._sio.manager
        return manager.peers if isinstance(manager, GeventMeshManager) else ()

    def do_settle(self, clients: float, seconds: float) -> bool:
        """Wait until so many are connected and have entered their rooms; whether it has come to that."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            members = self._sio.manager.rooms.get("/", {}).get("all", ())
            if len(self._sio.eio.sockets) == clients and len(members) == clients:
                return True
            gevent.sleep(SETTLE_SECONDS)
        return False

    def do_collect(self) -> float:
        """Free what is garbage; how long that took, in milliseconds. Nothing else runs meanwhile."""
        gc.unfreeze()
        began = time.monotonic()
        gc.collect()
        return (time.monotonic() - began) * 1000

    def do_freeze(self) -> None:
        """Free what is garbage, and leave the rest out of collections from now on, until `collect`."""
        gc.collect()
        gc.freeze()

    def do_emit(self, events: float, pause: float) -> int:
        """Emit to everybody, each event a pause after the one before.

        Returns:
            The number of the last one.
        """
        began = time.monotonic()
        for turn in range(int(events)):
            gevent.sleep(max(0.0, began + turn * pause - time.monotonic()))
            self._sio.emit("tick", (self._emitted, time.monotonic_ns(), self._padding))
            self._emitted += 1
        return self._emitted - 1

    def do_members(self, room: float) -> int:
        """How many clients of this node are in a room of a hundred."""
        return len(self._sio.manager.rooms["/"].get(f"hundred {room:.0f}", ()))

    def do_part(self, room: float) -> int:
        """Emit to a room of a hundred.

        Returns:
            The number of the event.
        """
        self._parts += 1
        self._sio.emit("part", (-self._parts, time.monotonic_ns(), self._padding), to=f"hundred {room:.0f}")
        return -self._parts

    def do_bare(self, events: float, pause: float) -> int:
        """What `emit` cannot cost less than: the same frame for all, given to the kernel in a loop.

        Returns:
            The number of the last one.
        """
        # As gevent's sockets do inside: it does not wait.
        sends = [connection._sock.send for connection in self.open]
        began = time.monotonic()
        for turn in range(int(events)):
            gevent.sleep(max(0.0, began + turn * pause - time.monotonic()))
            event = json.dumps(["tick", self._emitted, time.monotonic_ns(), self._padding], separators=(",", ":"))
            data = frame(Opcode.TEXT, b"42" + event.encode(), mask=False)
            for send in sends:
                send(data)
            self._emitted += 1
        return self._emitted - 1

    def do_watch(self) -> None:
        """Begin to look for how long the hub is held."""
        self._watch = Watch()

    def do_watched(self) -> float:
        """End it; the longest time, in milliseconds."""
        assert self._watch is not None
        return self._watch.end() * 1000


class Watch:
    """A timer that is due every millisecond, and notes how late it was."""

    def __init__(self) -> None:
        self._longest = 0.0
        self._last = time.monotonic()
        self._timer = gevent.get_hub().loop.timer(WATCH_SECONDS, WATCH_SECONDS)
        self._timer.start(self._look)

    def _look(self) -> None:
        now = time.monotonic()
        self._longest = max(self._longest, now - self._last - WATCH_SECONDS)
        self._last = now

    def end(self) -> float:
        """The longest time that nothing else could run, in seconds."""
        self._look()
        self._timer.stop()
        self._timer.close()
        return self._longest


def _handler(open_connections: dict[Any, None]) -> type[WebSocketHandler]:
    class Handler(WebSocketHandler):  # type: ignore[misc]  # gevent-websocket has no types
        def run_websocket(self) -> None:
            open_connections[self.socket] = None
            try:
                super().run_websocket()
            finally:
                del open_connections[self.socket]

    return Handler


def make_manager(contender: str, discovery: str) -> Any:
    if contender == "stock":
        return socketio.Manager()
    # Nobody waits for its clients to leave one after the other, at the end.
    return GeventMeshManager(
        discovery or [], ws_port=0, direct_writes=contender != "queues", drain_rate=DRAIN_RATE, drain_timeout=1.0
    )


@click.command()
@click.argument("contender", type=click.Choice(["mesh", "queues", "stock"]))
@click.option("--discovery", default="", help="URL; without it a node works alone.")
@click.option("--nodes", default=1, help="Among how many nodes the rooms of a hundred are spread.")
@click.option("--companions", default=0, help="So many more nodes in this process, which serve nobody.")
@click.option("--pings", is_flag=True, help="As Engine.IO has them by default.")
def main(contender: str, discovery: str, nodes: int, companions: int, pings: bool) -> None:
    """Serve clients, and do what is told over HTTP."""
    raise_descriptor_limit()
    timing = {} if pings else {"ping_interval": LONG_SECONDS, "ping_timeout": LONG_SECONDS}
    sio = socketio.Server(async_mode="gevent", client_manager=make_manager(contender, discovery), **timing)
    host = Host(sio, nodes)
    application = socketio.WSGIApp(sio, host)
    server = WSGIServer(("127.0.0.1", 0), application, handler_class=_handler(host.open), log=None, backlog=BACKLOG)
    server.start()
    for _ in range(companions):
        companion = make_manager(contender, discovery)
        socketio.Server(async_mode="gevent", client_manager=companion)
        companion.start()
    print(f"listening on {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
