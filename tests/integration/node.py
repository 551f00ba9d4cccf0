"""One node as a program: `python -m tests.integration.node '{"discovery": "ws://..."}'`.

A plain `socketio.Server` on pywsgi with gevent-websocket's handler, not monkey-patched unless asked. It prints one JSON
line when it serves, and does what ``POST /control`` asks for (see `Control`), on the same port as its clients.
"""

from __future__ import annotations

import base64
import gc
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from time import monotonic
from types import SimpleNamespace
from typing import Any

from gevent import monkey

if __name__ == "__main__" and "--patched" in sys.argv:
    monkey.patch_all()

import gevent
import psutil
import socketio
from gevent.pywsgi import WSGIServer
from geventwebsocket.handler import WebSocketHandler
from greenlet import greenlet

from gevent_mesh import GeventMeshManager, HealthApp
from gevent_mesh.cluster.results import Outcome, RoomCounts, SocketList
from gevent_mesh.net.pause import in_slices
from gevent_mesh.service import Service
from tests.integration.deafness import Deafness
from tests.integration.ear import Ear
from tests.integration.roaming import Roaming

__all__ = ["dumps", "loads", "told_of"]


def dumps(value: Any) -> str:
    """JSON that knows bytes."""

    def other(item: object) -> object:
        if isinstance(item, bytes):
            return {"$bytes": base64.b64encode(item).decode()}
        raise TypeError(f"{type(item).__name__} cannot travel")

    return json.dumps(value, default=other)


def loads(text: str | bytes) -> Any:
    """The reverse of `dumps`."""

    def hook(found: dict[str, Any]) -> Any:
        return base64.b64decode(found["$bytes"]) if list(found) == ["$bytes"] else found

    return json.loads(text, object_hook=hook)


class OwnJson:
    """A JSON module of one's own: its texts show that it was used."""

    @staticmethod
    def dumps(value: Any, **options: Any) -> str:
        return json.dumps(value, **{**options, "default": lambda item: {"own": repr(item)}})

    @staticmethod
    def loads(text: str, **options: Any) -> Any:
        return json.loads(text, **options)


class Unusual:
    """What only `OwnJson` can write."""

    def __repr__(self) -> str:
        return "unusual"


class Lobby(socketio.Namespace):  # type: ignore[misc]  # python-socketio has no types
    """Class-based; its connect handler enters rooms and emits."""

    def on_connect(self, sid: str, _environ: dict[str, Any], auth: Any = None) -> None:
        name = (auth or {}).get("name", "")
        self.save_session(sid, {"name": name})
        self.enter_room(sid, "lobby")
        self.emit("welcome", {"sid": sid, "node": self.server.manager.uid}, to=sid)
        self.emit("joined", name, room="lobby", skip_sid=sid)

    def on_say(self, sid: str, text: str) -> str:
        self.emit("said", {"name": self.get_session(sid)["name"], "text": text}, room="lobby", skip_sid=sid)
        return f"said {text}"

    def on_rename(self, sid: str, name: str) -> None:
        with self.session(sid) as session:
            session["name"] = name

    def on_disconnect(self, sid: str, _reason: Any = None) -> None:
        self.emit("left", self.get_session(sid)["name"], room="lobby", skip_sid=sid)


class Farewell(Service):
    """Says how much was sent in all when the node has left: after that, nothing is."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def left(self) -> None:
        print(json.dumps({"left": self._control.stop_traffic()}), flush=True)


class Control:
    """What tests may ask a node for: each public method, by its name."""

    def __init__(self, sio: Any, manager: GeventMeshManager) -> None:
        self._sio = sio
        self._manager = manager
        self._answers: dict[str, list[list[Any]]] = {}
        self._traffic: gevent.Greenlet | None = None
        self._is_talking = False
        self._sent = 0
        self._boot = secrets.token_hex(4)
        self._ear: Ear | None = None
        self._gaps: list[float] = []
        self._longest_work = 0.0
        self._disconnected: list[str] = []
        self._presence = manager.presence()
        self._presence_log: list[tuple[str, Any]] = []
        self._tracked_at: dict[str, float] = {}
        self._presence.on_join(lambda user: self._presence_log.append(("join", user.id)))
        self._presence.on_leave(lambda user: self._presence_log.append(("leave", user.id)))
        self._noted: list[list[Any]] = []
        self._watching: gevent.Greenlet | None = None
        self._deafness = Deafness(manager)
        self._roaming = Roaming(manager)
        manager.on("who", lambda: manager.uid)
        manager.on("add", lambda a, b: a + b)
        manager.on("wait", lambda seconds: gevent.sleep(seconds) or manager.uid)
        manager.on("fail", lambda: 1 // 0, namespace="/other")
        manager.on("note", lambda *arguments: self._noted.append(list(arguments)))

    # -- what it is

    def state(self) -> dict[str, Any]:
        mesh = self._manager.mesh
        assert mesh is not None
        return {
            "uid": self._manager.uid,
            "boot": self._boot,
            "at": monotonic(),
            "peers": {info.uid: asdict(info) for info in self._manager.peers},
            "linked_at": {peer.uid: peer.linked_at for peer in mesh.table if peer.link is not None},
            "links": sorted(peer.uid for peer in mesh.table.alive()),
            "counters": asdict(mesh.counters),
            "outbox": {peer.uid: peer.session.outbox_bytes for peer in mesh.table},
            "strangers": dict(mesh._listener.strangers_cut) if mesh._listener else {},
            "discovery": [client.connected for client in mesh._discovery],
            "serves_discovery": self._manager._node.embedded is not None and self._manager._node.embedded.is_serving,
            "requests": len(self._manager._requests),
            "sent": self._sent,
            "traffic": self._traffic is not None and not self._traffic.dead,
            "rss": psutil.Process().memory_info().rss,
            "descriptors": psutil.Process().num_fds(),
        }

    def wall_clock(self) -> float:
        return time.time()

    def wait_for_peers(self, count: int, timeout: float) -> bool:
        return self._manager.wait_for_peers(count, timeout)

    def rooms(self, sid: str, namespace: str = "/") -> list[Any]:
        return sorted(self._sio.rooms(sid, namespace=namespace), key=repr)

    def disconnected(self) -> list[str]:
        return self._disconnected

    # -- what python-socketio offers

    def emit(self, event: str, *data: Any, several: bool = False, **options: Any) -> None:
        """Emit; `several` passes the arguments as a tuple even when there are none, or one."""
        if several:
            self._sio.emit(event, tuple(data), **options)
        else:
            self._sio.emit(event, *data, **options)

    def emit_unusual(self, event: str) -> None:
        self._sio.emit(event, {"value": Unusual()})

    def send(self, data: Any, **options: Any) -> None:
        self._sio.send(data, **options)

    def ask(self, event: str, data: Any, **options: Any) -> str:
        """Emit with a callback; `answers` tells what it was called with."""
        key = secrets.token_hex(4)
        self._answers[key] = []
        self._sio.emit(event, data, callback=lambda *answer: self._answers[key].append(list(answer)), **options)
        return key

    def answers(self, key: str) -> list[list[Any]]:
        return self._answers[key]

    def call(self, event: str, data: Any, **options: Any) -> Any:
        """`call`; a tuple of several answer arguments arrives as a list."""
        return {"answer": self._sio.call(event, data, **options)}

    def enter_room(self, sid: str, room: Any, namespace: str = "/") -> None:
        self._sio.enter_room(sid, room, namespace=namespace)

    def leave_room(self, sid: str, room: Any, namespace: str = "/") -> None:
        self._sio.leave_room(sid, room, namespace=namespace)

    def close_room(self, room: Any, namespace: str = "/") -> None:
        self._sio.close_room(room, namespace=namespace)

    def disconnect(self, sid: str, namespace: str = "/", **options: Any) -> None:
        self._sio.disconnect(sid, namespace=namespace, **options)

    # -- who is online

    def track(self, sid: str, user: Any, meta: dict[str, Any] | None = None) -> float:
        """Returns when, by the clock that all processes of a machine share."""
        self._tracked_at[sid] = monotonic()
        self._presence.track(sid, user, meta)
        return self._tracked_at[sid]

    def untrack(self, sid: str) -> float:
        now = monotonic()
        self._presence.untrack(sid)
        return now

    def tracked_at(self, sid: str) -> float:
        return self._tracked_at[sid]

    def present(self) -> list[Any]:
        """[user, sids] of everybody who is online."""
        return sorted(([user.id, list(user.sids)] for user in self._presence.users().values()), key=repr)

    def described(self) -> list[Any]:
        """All that is known of everybody who is online."""
        return sorted((asdict(user) for user in self._presence.users().values()), key=lambda user: repr(user["id"]))

    def present_at(self, expected: list[Any], seconds: float) -> float | None:
        """When these were found to be online; None if they were not within so many seconds."""
        deadline = monotonic() + seconds
        while (now := monotonic()) < deadline:
            if [[user, sorted(sids)] for user, sids in self.present()] == expected:
                return now
            gevent.sleep(0.001)
        return None

    def presence_log(self) -> list[tuple[str, Any]]:
        return self._presence_log

    # -- what the mesh offers beyond that

    def cluster(self, method: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        """A method that asks or commands the cluster; its result and how complete that is."""
        return told_of(self._manager, method, *arguments, **options)

    def measure(self, method: str, **options: Any) -> dict[str, Any]:
        """As `cluster`, but tells only how large the result is, and how long others had to wait meanwhile."""
        self.watch_hub()
        began = monotonic()
        result = getattr(self._manager, method)(**options)
        seconds, gap = monotonic() - began, self.longest_gap()
        size = result if isinstance(result, int) else len(result)
        return {"seconds": seconds, "longest_gap": gap, "size": size, "missing": list(result.missing_nodes)}

    def break_links(self) -> None:
        """Cut the connections to all peers."""
        mesh = self._manager.mesh
        assert mesh is not None
        for link in list(mesh._links.values()):
            link.cut("a test")

    def deafness(self, what: str) -> Any:
        """See `Deafness`."""
        return getattr(self._deafness, what)()

    def roaming(self, what: str, *arguments: Any) -> Any:
        """See `Roaming`."""
        return getattr(self._roaming, what)(*arguments)

    def server_events(self) -> list[list[Any]]:
        """The arguments of the server-side event "note" that came here, in order."""
        return self._noted

    def populate(self, count: int, namespace: str = "/") -> None:
        """Clients that exist in the tables only: in one of a hundred rooms each, with a session and a handshake."""
        for n in in_slices(range(count)):
            eio_sid = secrets.token_hex(10)
            self._sio.environ[eio_sid] = {"REMOTE_ADDR": "10.1.2.3", "QUERY_STRING": f"EIO=4&transport=websocket&n={n}"}
            session = {namespace: {"name": f"user {n}"}}
            # There is nothing to disconnect when the node leaves.
            self._sio.eio.sockets[eio_sid] = SimpleNamespace(session=session, closing=True, closed=False)
            sid = secrets.token_hex(10)
            self._manager.basic_enter_room(sid, namespace, None, eio_sid=eio_sid)
            self._manager.basic_enter_room(sid, namespace, sid, eio_sid=eio_sid)
            self._manager.basic_enter_room(sid, namespace, f"room {n % 100}", eio_sid=eio_sid)
        # What the garbage collector owes after so many new objects is not to be paid by what is measured next.
        gc.collect()

    def freeze_what_stays(self) -> None:
        """Keep the garbage collector's pauses short (docs/clients.md)."""
        gc.collect()
        gc.callbacks.append(_freeze)

    def watch_hub(self) -> None:
        """From now on, note how long others have to wait."""
        self._gaps = []
        self._longest_work = 0.0
        self._watching = gevent.spawn(self._tick)

    def longest_work(self) -> float:
        """As `longest_gap`, of the processor's time: what others on a busy machine do is not in it. Ends nothing."""
        return self._longest_work

    def longest_gap(self) -> float:
        """The longest that others had to wait since `watch_hub`, in seconds. Ends it."""
        assert self._watching is not None
        self._watching.kill()
        return max(self._gaps, default=0.0)

    # -- traffic that is counted

    def listen(self) -> None:
        """Have an `Ear` from now on."""
        self._ear = Ear(self._sio, self._manager, self._boot)

    def account(self) -> dict[str, Any]:
        """What came, and what the sessions say (see `checker.Account`)."""
        assert self._ear is not None
        return self._ear.account(self._manager.uid, self._sent)

    def resources(self) -> dict[str, int]:
        """What this process holds; not what it has noted for tests."""
        if self._ear is not None:
            self._ear.forget_latencies()
        gc.collect()
        process = psutil.Process()
        greenlets = sum(isinstance(one, greenlet) and not one.dead for one in gc.get_objects())
        return {"memory": process.memory_info().rss, "descriptors": process.num_fds(), "greenlets": greenlets}

    def latency(self, since: float, boots: list[str] | None = None) -> dict[str, float]:
        """How long events took that came since then, in seconds."""
        assert self._ear is not None
        took = self._ear.latencies(since, boots)
        return {"count": len(took), "p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100], "worst": took[-1]}

    def start_traffic(self, rate: float, room: str | None = None, padding: int = 0, count: int | None = None) -> None:
        """Emit numbered events at a steady rate, until `stop_traffic` or `count`."""
        assert self._traffic is None or self._traffic.dead
        self._traffic = gevent.spawn(self._run_traffic, rate, room, padding, count)

    def stop_traffic(self) -> int:
        """Returns how many events were emitted since the start of the node."""
        if self._traffic is not None:
            # Not killed: an event that is counted is published.
            self._is_talking = False
            self._traffic.join()
        return self._sent

    def _run_traffic(self, rate: float, room: str | None, padding: int, count: int | None) -> None:
        began, before = monotonic(), self._sent
        self._is_talking = True
        while self._is_talking and (count is None or self._sent - before < count):
            due = int((monotonic() - began) * rate) - (self._sent - before)
            if count is not None:
                due = min(due, count - (self._sent - before))
            self._emit_numbered(due, room, padding)
            gevent.sleep(0.005)

    def burst(self, count: int, room: str | None = None, padding: int = 0) -> dict[str, Any]:
        """Emit in a tight loop, without giving way once ourselves. Tells how long others had to wait."""
        self._gaps = []
        ticking = gevent.spawn(self._tick)
        gevent.sleep(0.01)
        began = monotonic()
        self._emit_numbered(count, room, padding)
        seconds = monotonic() - began
        ticking.kill()
        return {"seconds": seconds, "longest_gap": max(self._gaps, default=0.0), "sent": self._sent}

    def _emit_numbered(self, count: int, room: str | None, padding: int) -> None:
        tail = ("x" * padding,) if padding else ()
        for _ in range(count):
            if self._manager.mesh is None:
                return
            # Counted first: being killed while emit gives way must not let a number go out twice.
            self._sent += 1
            if self._ear is not None:
                self._ear.emits(self._sent)
            self._sio.emit("tick", (self._boot, self._sent, monotonic(), *tail), room=room)

    def _tick(self) -> None:
        last, worked = monotonic(), time.process_time()
        while True:
            gevent.sleep(0.005)
            now, works = monotonic(), time.process_time()
            self._gaps.append(now - last - 0.005)
            self._longest_work = max(self._longest_work, works - worked)
            last, worked = now, works

    # -- life

    def stop(self) -> None:
        self._manager.stop()

    # -- HTTP

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        try:
            value = getattr(self, asked["operation"])(*asked["arguments"], **asked["options"])
            answer = {"value": value}
        except Exception as error:
            logging.getLogger(__name__).info("control: %s failed", asked["operation"], exc_info=True)
            answer = {"error": type(error).__name__, "text": str(error)}
        body = dumps(answer).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def told_of(manager: GeventMeshManager, method: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    """What a method that asks or commands the cluster returns, as JSON can carry it, and how complete that is."""
    began = monotonic()
    result = getattr(manager, method)(*arguments, **options)
    told: dict[str, Any] = {"seconds": monotonic() - began, "value": _plain(result)}
    if isinstance(result, Outcome):
        told |= {"missing": list(result.missing_nodes), "expected": result.expected, "received": result.received}
    return told


def _plain(result: Any) -> Any:
    """The result of a question to the cluster, as JSON can carry it."""
    if isinstance(result, SocketList):
        return [
            {
                "sid": socket.sid,
                "node": socket.node,
                "rooms": list(socket.rooms),
                "data": socket.data,
                "address": socket.handshake.address,
                "query": socket.handshake.query,
                "time": socket.handshake.time,
                "auth": socket.handshake.auth,
            }
            for socket in result
        ]
    return list(result.items()) if isinstance(result, RoomCounts) else result


def _freeze(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()


def build(options: dict[str, Any]) -> tuple[Any, GeventMeshManager, Control]:
    """The server of one node, not started."""
    server_options = {"max_http_buffer_size": 8 * 1024 * 1024, **options.get("server", {})}
    if server_options.get("json") == "own":
        server_options["json"] = OwnJson
    manager = GeventMeshManager(options["discovery"], **{"ws_port": 0, **options.get("manager", {})})
    sio = socketio.Server(
        async_mode="gevent", client_manager=manager, namespaces=["/", "/other", "/lobby", "/more"], **server_options,
    )  # fmt: skip
    control = Control(sio, manager)
    if options.get("ear"):
        control.listen()
    manager._node.add(Farewell(control))

    @sio.on("connect")  # type: ignore[untyped-decorator]  # python-socketio has no types
    def connected(sid: str, _environ: dict[str, Any], auth: Any = None) -> None:
        if isinstance(auth, dict) and "user" in auth:
            control.track(sid, auth["user"], auth.get("meta"))

    @sio.on("enter")  # type: ignore[untyped-decorator]  # python-socketio has no types
    def enter(sid: str, room: str) -> str:
        sio.enter_room(sid, room)
        return room

    @sio.on("relay")  # type: ignore[untyped-decorator]  # python-socketio has no types
    def relay(sid: str, event: str, *data: Any) -> None:
        """What a client makes its server emit: to all others."""
        sio.emit(event, data, skip_sid=sid)

    @sio.on("disconnect")  # type: ignore[untyped-decorator]  # python-socketio has no types
    def disconnected(sid: str, _reason: Any = None) -> None:
        control._disconnected.append(sid)

    sio.register_namespace(Lobby("/lobby"))
    return sio, manager, control


def main() -> None:
    options = json.loads(sys.argv[1])
    logging.basicConfig(
        level=options.get("log", "INFO"),
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    # It would tell of each request, the tests' own included.
    logging.getLogger("geventwebsocket").setLevel(logging.WARNING)
    sio, manager, control = build(options)
    clients = HealthApp(manager, socketio.WSGIApp(sio))

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] == "/control":
            return control(environ, start_response)
        return clients(environ, start_response)

    server = WSGIServer(("127.0.0.1", 0), app, handler_class=WebSocketHandler, log=None)
    server.start()
    mesh = manager.mesh
    assert mesh is not None
    line = {"http_port": server.server_port, "ws_port": mesh.port, "uid": manager.uid, "pid": os.getpid()}
    print(json.dumps(line), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
