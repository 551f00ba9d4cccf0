"""Who is online, across servers and tabs, on Flask-SocketIO.

Start it on several ports and open pages on each, under one name or several: every page shows everybody, with their tabs
and the servers that these are connected to. `mesh.presence()` does the work. This file says who a client is, and passes
on to its own pages what it hears.

Whoever opens a page may call themselves what they like; an application would take the user from its session. What a
page sends is checked here by type, length and rate, and shown as text only.
"""

# Flask-SocketIO's decorators have no types:
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from flask import Flask, Response, jsonify, render_template, request, send_from_directory
from flask_socketio import ConnectionRefusedError, SocketIO
from gevent import signal_handler
from gevent.event import Event
from gevent.pywsgi import WSGIServer
from geventwebsocket.handler import WebSocketHandler

from gevent_mesh import GeventMeshManager, PresentUser, StartError

HERE = Path(__file__).resolve().parent
CLIENT = HERE.parent / "chat" / "static" / "vendor"  # the Socket.IO client that `make demo` fetches for the chat

NAME_LENGTH = 24
MOODS = ("here", "busy", "away")
MOODS_PER_SECOND = 2.0
MOODS_AT_ONCE = 6
PEOPLE_SHOWN = 500


# -- Settings ----------------------------------------------------------------------------------------------------------


def read_settings(arguments: list[str]) -> argparse.Namespace:
    """Options, else the environment, else what suits several servers on one machine."""
    environment = os.environ.get
    parser = argparse.ArgumentParser(prog="app.py", description="Who is online, across servers and tabs.")
    parser.add_argument("--host", default=environment("HOST", "127.0.0.1"), help="address for browsers [HOST]")
    parser.add_argument("--port", default=environment("PORT", "5000"), type=port, help="port for browsers [PORT]")
    parser.add_argument(
        "--discovery",
        default=environment("MESH_DISCOVERY") or None,
        help="ws://host:port of the discovery service; without it, those of one host find each other [MESH_DISCOVERY]",
    )
    parser.add_argument(
        "--ws-port",
        default=environment("MESH_PORT", "0"),
        type=port,
        help="port for other servers, 0 takes any free one [MESH_PORT]",
    )
    return parser.parse_args(arguments)


def port(text: str) -> int:
    """0 to 65535, 0 for any free one."""
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError(text)
    return number


settings = read_settings(sys.argv[1:] if __name__ == "__main__" else [])

app = Flask(__name__, root_path=str(HERE))
# A channel of its own: it does not mix with other applications that find each other on this host.
mesh = GeventMeshManager(settings.discovery, ws_port=settings.ws_port, channel="presence")
socketio = SocketIO(app, client_manager=mesh, async_mode="gevent", max_http_buffer_size=16 * 1024)
presence = mesh.presence()


# -- Who is online -----------------------------------------------------------------------------------------------------


@presence.on_join
@presence.on_update
def present(user: PresentUser) -> None:
    """Runs on every server, so each tells its own pages only: that is what `ignore_queue` means."""
    socketio.emit("present", shown(user), ignore_queue=True)


@presence.on_leave
def absent(user: PresentUser) -> None:
    socketio.emit("absent", user.id, ignore_queue=True)


def shown(user: PresentUser) -> dict[str, object]:
    """What pages get to know of a user: not the sids, which are nobody else's business."""
    servers: dict[str, int] = {}
    for client in user.clients:
        servers[client.node] = servers.get(client.node, 0) + 1
    return {"name": user.id, "mood": user.meta.get("mood"), "since": user.since, "tabs": servers}


# -- Events from pages -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tab:
    """One page that is connected to this server."""

    name: str
    moods_left: float = MOODS_AT_ONCE
    counted_at: float = field(default_factory=time.monotonic)

    def may_change(self) -> bool:
        """A token bucket: every change costs every server a message."""
        now = time.monotonic()
        self.moods_left = min(MOODS_AT_ONCE, self.moods_left + (now - self.counted_at) * MOODS_PER_SECOND)
        self.counted_at = now
        if self.moods_left < 1:
            return False
        self.moods_left -= 1
        return True


tabs: dict[str, Tab] = {}  # by sid


@socketio.on("connect")
def connect(auth: object = None) -> None:
    name = clean(auth.get("name") if isinstance(auth, dict) else None, NAME_LENGTH)
    if not name:
        raise ConnectionRefusedError(f"A name has 1 to {NAME_LENGTH} characters.")
    tabs[sid()] = Tab(name)
    presence.track(sid(), name, {"mood": MOODS[0]})
    people = sorted(presence.users().values(), key=lambda user: user.since)
    state = {"people": [shown(user) for user in people[:PEOPLE_SHOWN]], "total": len(people)}
    socketio.emit("everybody", {"you": name, "server": mesh.uid, **state}, to=sid())


@socketio.on("mood")
def mood(wish: object = None, *_: object) -> dict[str, object]:
    """The user of this tab is busy, say. Answers `{}`, or an `error`."""
    if wish not in MOODS:
        return {"error": f"A mood is one of {', '.join(MOODS)}."}
    tab = tabs.get(sid())
    if tab is None or not tab.may_change():
        return {"error": "That was a little fast. Please wait a moment."}
    presence.track(sid(), tab.name, {"mood": wish})
    return {}


@socketio.on("disconnect")
def disconnect(*_reason: object) -> None:
    # Presence needs no help: whose last tab this was is offline on every server.
    tabs.pop(sid(), None)


def clean(value: object, length: int) -> str:
    """A printable text of at most `length` characters, or "" when there is none to be had."""
    if not isinstance(value, str) or len(value) > 4 * length:
        return ""
    # No control characters, halves of surrogate pairs, or marks that turn the direction of writing.
    text = " ".join("".join(c for c in value if unicodedata.category(c) not in ("Cc", "Cs", "Cf")).split())
    return text if len(text) <= length else ""


def sid() -> str:
    return str(getattr(request, "sid"))  # noqa: B009 - Flask-SocketIO adds the attribute, which Flask's types lack


# -- HTTP --------------------------------------------------------------------------------------------------------------


@app.get("/")
def index() -> str:
    bundled = (CLIENT / "socket.io.min.js").is_file()
    return render_template("index.html", bundled=bundled, name_length=NAME_LENGTH, moods=MOODS)


@app.get("/client/<path:name>")
def socket_io_client(name: str) -> Response:
    return send_from_directory(CLIENT, name)


@app.get("/online")
def online() -> Response:
    """The same for programs: `curl` shows what this server knows."""
    return jsonify(server=mesh.uid, people=[shown(user) for user in presence.users().values()])


@app.after_request
def protect(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = (
        "default-src 'self'; script-src 'self' https://cdn.socket.io; connect-src 'self' ws: wss:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-cache"
    return response


# -- As a program ------------------------------------------------------------------------------------------------------


def serve() -> None:
    """Serve until SIGINT or SIGTERM.

    `socketio.run(app)` would do. This also prints the port, and takes Ctrl-C for what it is.
    """
    server = WSGIServer((settings.host, settings.port), app, handler_class=WebSocketHandler, log=None)
    try:
        server.start()
    except (OSError, StartError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"presence server listening on http://{settings.host}:{server.server_port}", flush=True)
    stop = Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal_handler(signal_number, stop.set)
    stop.wait()
    server.stop()


if __name__ == "__main__":
    serve()
