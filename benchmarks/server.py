"""A server process: `python -m benchmarks.server mesh|mesh-interest|redis|kombu URL`.

The same for all contenders but for the client manager: pywsgi with gevent-websocket, one namespace, no event handlers.
It is patched by gevent, which `RedisManager` and `KombuManager` ask for and `GeventMeshManager` does not. It says
``listening on PORT`` and is told over HTTP what to do:

- ``/warm``, ``/pace?rate=200&seconds=5``, ``/flood?seconds=5``: emit, to everybody; with ``&to=`` to a room or client;
- ``/enter?room=``: its own clients enter a room;
- ``/facts``: what it has handled, sent and used so far.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterable  # noqa: E402
from typing import Any  # noqa: E402
from urllib.parse import parse_qsl  # noqa: E402

import gevent  # noqa: E402
import socketio  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402
from geventwebsocket.handler import WebSocketHandler  # noqa: E402

from .wire import padding  # noqa: E402

__all__ = ["main"]

LATE_SECONDS = 1.0


class Emitter:
    """The WSGI application that emits. Each request runs in a greenlet of its own."""

    def __init__(self, sio: Any) -> None:
        self._sio = sio
        self._padding = padding()
        self._emitted = 0
        self._counts: Callable[[], tuple[int, int]] | None = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        arguments = dict(parse_qsl(environ["QUERY_STRING"]))
        actions: dict[str, Callable[..., Any]] = {
            "/warm": self.warm,
            "/pace": self.pace,
            "/flood": self.flood,
            "/enter": self.enter,
            "/facts": self.facts,
        }
        answer = actions[environ["PATH_INFO"]](**arguments)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    def warm(self) -> None:
        """One event that does not count."""
        self._sio.emit("warm")

    def pace(self, rate: str, seconds: str, to: str | None = None) -> dict[str, int]:
        """Emit at a fixed rate; a late one is not waited for by the next, and what cannot keep up ends early.

        Each event has its own moment within its turn, the same ones in every round: in step with somebody's timers the
        same few events would meet them each time, or none.
        """
        moments = random.Random(rate)
        began = time.monotonic()
        for turn in range(round(float(rate) * float(seconds))):
            now = time.monotonic()
            if now - began > float(seconds) + LATE_SECONDS:
                break
            gevent.sleep(max(0.0, began + (turn + moments.random()) / float(rate) - now))
            self._tick(to)
        return self._end(began, to)

    def flood(self, seconds: str, to: str | None = None) -> dict[str, int]:
        """Emit in a loop that does nothing else: whether it waits for anything is up to the client manager."""
        began, ends = time.monotonic(), time.monotonic() + float(seconds)
        while time.monotonic() < ends:
            self._tick(to)
        return self._end(began, to)

    def _tick(self, to: str | None) -> None:
        self._sio.emit("tick", (self._emitted, time.monotonic_ns(), self._padding), to=to)
        self._emitted += 1

    def _end(self, began: float, to: str | None) -> dict[str, int]:
        emitted, self._emitted = self._emitted, 0
        answer = {"emitted": emitted, "began_ns": int(began * 1e9), "ended_ns": time.monotonic_ns()}
        self._sio.emit("end", emitted, to=to)
        return answer

    def enter(self, room: str) -> list[str]:
        """The sids of its clients, all of which are in the room now."""
        sids = [sid for sid, _ in self._sio.manager.get_participants("/", None)]
        for sid in sids:
            self._sio.enter_room(sid, room)
        return sids

    def facts(self) -> dict[str, float]:
        """CPU seconds, and the messages that came from other nodes and went to them."""
        self._counts = self._counts or counting(self._sio.manager)
        handled, sent = self._counts()
        return {"cpu_seconds": time.process_time(), "handled": handled, "sent": sent}


def counting(manager: Any) -> Callable[[], tuple[int, int]]:
    """What tells how many messages a manager has handled and sent, counted from now on at the latest."""
    if hasattr(manager, "mesh"):
        return lambda: (manager.mesh.counters.messages_received, manager.mesh.counters.messages_sent)
    counts = {"_handle_emit": 0, "_publish": 0}

    def count(name: str) -> None:
        method = getattr(manager, name)

        def counted(message: Any) -> Any:
            counts[name] += 1
            return method(message)

        setattr(manager, name, counted)

    for name in counts:
        count(name)
    return lambda: (counts["_handle_emit"], counts["_publish"])


def make_mesh(url: str, **options: Any) -> Any:
    from gevent_mesh import GeventMeshManager

    return GeventMeshManager(url, ws_port=0, **options)


MANAGERS: dict[str, Callable[[str], Any]] = {
    "mesh": make_mesh,
    "mesh-interest": lambda url: make_mesh(url, room_interest=True),
    "redis": socketio.RedisManager,
    "kombu": socketio.KombuManager,
}


def main() -> None:
    name, url = sys.argv[1:]
    sio = socketio.Server(async_mode="gevent", client_manager=MANAGERS[name](url))
    application = socketio.WSGIApp(sio, Emitter(sio))
    server = WSGIServer(("127.0.0.1", 0), application, handler_class=WebSocketHandler, log=None)
    server.start()
    print(f"listening on {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
