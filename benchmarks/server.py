"""A server process: `python -m benchmarks.server mesh|redis URL`.

The same for all contenders but for the client manager: pywsgi with gevent-websocket, one namespace, no event handlers.
It is patched by gevent, which `RedisManager` asks for and `GeventMeshManager` does not. It says ``listening on PORT``
and is told over HTTP what to emit, to everybody: ``/warm``, ``/pace?rate=200&seconds=5``, ``/flood?seconds=5``.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
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


class Emitter:
    """The WSGI application that emits. Each request runs in a greenlet of its own."""

    def __init__(self, sio: Any) -> None:
        self._sio = sio
        self._padding = padding()
        self._emitted = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        arguments = {key: float(value) for key, value in parse_qsl(environ["QUERY_STRING"])}
        actions: dict[str, Callable[..., Any]] = {"/warm": self.warm, "/pace": self.pace, "/flood": self.flood}
        answer = actions[environ["PATH_INFO"]](**arguments)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    def warm(self) -> None:
        """One event that does not count."""
        self._sio.emit("warm")

    def pace(self, rate: float, seconds: float) -> dict[str, int]:
        """Emit at an even pace; a late one is not waited for by the next."""
        began = time.monotonic()
        for turn in range(round(rate * seconds)):
            gevent.sleep(max(0.0, began + turn / rate - time.monotonic()))
            self._tick()
        return self._end(began)

    def flood(self, seconds: float) -> dict[str, int]:
        """Emit in a loop that does nothing else: whether it waits for anything is up to the client manager."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            self._tick()
        return self._end(began)

    def _tick(self) -> None:
        self._sio.emit("tick", (self._emitted, time.monotonic_ns(), self._padding))
        self._emitted += 1

    def _end(self, began: float) -> dict[str, int]:
        emitted, self._emitted = self._emitted, 0
        answer = {"emitted": emitted, "began_ns": int(began * 1e9), "ended_ns": time.monotonic_ns()}
        self._sio.emit("end", emitted)
        return answer


def make_manager(name: str, url: str) -> Any:
    if name == "redis":
        return socketio.RedisManager(url)
    from gevent_mesh import GeventMeshManager

    return GeventMeshManager(url, ws_port=0)


def main() -> None:
    name, url = sys.argv[1:]
    sio = socketio.Server(async_mode="gevent", client_manager=make_manager(name, url))
    application = socketio.WSGIApp(sio, Emitter(sio))
    server = WSGIServer(("127.0.0.1", 0), application, handler_class=WebSocketHandler, log=None)
    server.start()
    print(f"listening on {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
