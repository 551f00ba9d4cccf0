"""A chat on Flask-SocketIO whose rooms span servers.

Start it on several ports and open a page on each: they share rooms, because every `emit` travels through the mesh.
Nothing below knows about other servers, but for the line that makes the `GeventMeshManager`.

Who is in a room is put together by the pages. A server knows its own people only, so it tells the room about them:
when they change, every few seconds (so that a server that died is noticed by its silence), and when the roll is called.
A newcomer's server calls the roll; on each server, the first person of that room passes the call on to it. So a join
costs one message per server, however many people there are.

Whatever a page sends is checked here: its type, its length, how often. Texts go out as they are; a page never reads one
as HTML.
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
from typing import Any

from flask import Flask, Response, jsonify, render_template, request
from flask_socketio import SocketIO, join_room, leave_room
from gevent import signal_handler
from gevent.event import Event
from gevent.pywsgi import WSGIServer
from geventwebsocket.handler import WebSocketHandler

from gevent_mesh import GeventMeshManager, StartError

HERE = Path(__file__).resolve().parent

NICKNAME_LENGTH = 24
ROOM_LENGTH = 24
TEXT_LENGTH = 1000
PEOPLE_SHOWN = 100  # per server and room; what is beyond is only counted
EVENTS_AT_ONCE = 12  # what one page may send in a burst ...
EVENTS_PER_SECOND = 3.0  # ... and for long
ANNOUNCE_SECONDS = 4.0  # pages forget a server that was silent for three times as long
GATHER_SECONDS = 0.1  # changes within this time go out as one announcement

# Characters that turn the writing direction of what follows them, on the rest of the page too.
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


# -- Settings ----------------------------------------------------------------------------------------------------------


def read_settings(arguments: list[str]) -> argparse.Namespace:
    """Options, else the environment, else what suits several servers on one machine."""
    environment = os.environ.get
    parser = argparse.ArgumentParser(prog="app.py", description="A chat whose rooms span servers.")
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
    parser.add_argument("--name", default=environment("CHAT_NAME"), help="what pages call this server [CHAT_NAME]")
    return parser.parse_args(arguments)


def port(text: str) -> int:
    """0 to 65535, 0 for any free one."""
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError(text)
    return number


settings = read_settings(sys.argv[1:] if __name__ == "__main__" else [])

app = Flask(__name__, root_path=str(HERE))
manager = GeventMeshManager(settings.discovery, ws_port=settings.ws_port)
socketio = SocketIO(app, client_manager=manager, async_mode="gevent", max_http_buffer_size=64 * 1024)


# -- People ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Person:
    """One page that is connected to this server."""

    sid: str
    nickname: str = ""
    room: str = ""  # none before the page has joined one
    events_left: float = EVENTS_AT_ONCE
    counted_at: float = field(default_factory=time.monotonic)

    def may_send(self) -> bool:
        """A token bucket: bursts are fine, a flood is not."""
        now = time.monotonic()
        self.events_left = min(EVENTS_AT_ONCE, self.events_left + (now - self.counted_at) * EVENTS_PER_SECOND)
        self.counted_at = now
        if self.events_left < 1:
            return False
        self.events_left -= 1
        return True


class Attendance:
    """Who is on this server, and the greenlet that tells the others about it."""

    def __init__(self) -> None:
        self.people: dict[str, Person] = {}  # by sid, in the order in which they came
        self.messages = 0
        self._changed: set[str] = set()
        self._wake = Event()
        self._started = False

    def start(self) -> None:
        """Begin to announce. Not at import: a greenlet does not outlive the fork of `gunicorn --preload`."""
        if not self._started:
            self._started = True
            socketio.start_background_task(self._announce_forever)

    def changed(self, room: str) -> None:
        self._changed.add(room)
        self._wake.set()

    def _announce_forever(self) -> None:
        while True:
            if self._wake.is_set():
                socketio.sleep(GATHER_SECONDS)
                self._wake.clear()
                rooms, self._changed = self._changed, set()
            else:
                socketio.emit("server", {"node": manager.uid, "server": server_name()})
                rooms = {person.room for person in self.people.values() if person.room}
            for room in rooms:
                self._announce(room)
            self._wake.wait(ANNOUNCE_SECONDS)

    def _announce(self, room: str) -> None:
        people = [person for person in self.people.values() if person.room == room]
        shown = [{"id": person.sid, "nickname": person.nickname} for person in people[:PEOPLE_SHOWN]]
        socketio.emit(
            "people",
            {"node": manager.uid, "server": server_name(), "room": room, "people": shown, "total": len(people)},
            to=room_key(room),
        )


here = Attendance()


def server_name() -> str:
    return clean(settings.name, NICKNAME_LENGTH) or str(manager.uid)[:6]


def room_key(room: str) -> str:
    """A prefix, for a room's name comes from a page, and every sid is the name of a room too."""
    return f"room:{room}"


def clean(value: object, length: int, *, lines: bool = False) -> str:
    """A printable text of at most `length` characters, or "" when there is none to be had."""
    if not isinstance(value, str) or len(value) > 4 * length:
        return ""
    text = "".join(c for c in value if (lines and c == "\n") or c == "\t" or is_text(c)).replace("\t", " ")
    text = text.strip() if lines else " ".join(text.split())
    return text if len(text) <= length else ""


def is_text(character: str) -> bool:
    """Neither a control character nor half of a surrogate pair, which UTF-8 has no form for."""
    return unicodedata.category(character) not in ("Cc", "Cs") and character not in BIDI_CONTROLS


# -- Events from pages -------------------------------------------------------------------------------------------------


@socketio.on("connect")
def connect(_auth: object = None) -> None:
    here.start()
    here.people[sid()] = Person(sid())


@socketio.on("disconnect")
def disconnect(*_reason: object) -> None:
    person = here.people.pop(sid(), None)
    if person and person.room:
        here.changed(person.room)


@socketio.on("join")
def join(wish: object = None, *_: object) -> dict[str, object]:
    """Enter a room under a nickname, leaving the one before. Answers who and where the page is, or an `error`."""
    person = caller()
    wish = wish if isinstance(wish, dict) else {}
    nickname, room = clean(wish.get("nickname"), NICKNAME_LENGTH), clean(wish.get("room"), ROOM_LENGTH)
    if not nickname:
        return {"error": f"A nickname has 1 to {NICKNAME_LENGTH} characters."}
    if not room:
        return {"error": f"A room's name has 1 to {ROOM_LENGTH} characters."}
    if not person.may_send():
        return {"error": "That was a little fast. Please wait a moment."}
    if person.room and person.room != room:
        leave_room(room_key(person.room))
        here.changed(person.room)
    person.nickname, person.room = nickname, room
    join_room(room_key(room))
    here.changed(room)
    socketio.emit("roll call", {"room": room}, to=room_key(room), skip_sid=person.sid)
    return {"id": person.sid, "nickname": nickname, "room": room, "node": manager.uid, "server": server_name()}


@socketio.on("roll call")
def roll_call(*_: object) -> None:
    """A page passes on that somebody, on some server, wants to know who is in its room."""
    person = caller()
    if person.room and person.may_send():
        here.changed(person.room)


@socketio.on("say")
def say(text: object = None, *_: object) -> dict[str, object]:
    """Say something in the room. Answers `{}`, or an `error`."""
    person = caller()
    cleaned = clean(text, TEXT_LENGTH, lines=True)
    if not person.room:
        return {"error": "Join a room first."}
    if not cleaned:
        return {"error": f"A message has 1 to {TEXT_LENGTH} characters."}
    if not person.may_send():
        return {"error": "That was a little fast. Please wait a moment."}
    here.messages += 1
    message = {"id": person.sid, "nickname": person.nickname, "room": person.room, "text": cleaned}
    origin = {"node": manager.uid, "server": server_name(), "sentAt": time.time()}
    socketio.emit("said", {**message, **origin}, to=room_key(person.room))
    return {}


@socketio.on("clock")
def clock(*_: object) -> float:
    """This server's time, so that a page can tell how long a message took even when its own clock is wrong."""
    return time.time()


@socketio.on("mesh")
def mesh(*_: object) -> dict[str, object]:
    return mesh_state()


def caller() -> Person:
    """Who sent the event. One that is handled after its page has left changes nothing that lasts."""
    return here.people.get(sid()) or Person(sid())


def sid() -> str:
    return str(getattr(request, "sid"))  # noqa: B009 - Flask-SocketIO adds the attribute, which Flask's types lack


# -- HTTP --------------------------------------------------------------------------------------------------------------


@app.get("/")
def index() -> str:
    bundled = (HERE / "static" / "vendor" / "socket.io.min.js").is_file()
    return render_template("index.html", bundled=bundled, nickname_length=NICKNAME_LENGTH, text_length=TEXT_LENGTH)


@app.get("/mesh")
def mesh_page() -> Response:
    return jsonify(mesh_state())


def mesh_state() -> dict[str, Any]:
    """What this server knows of the mesh. No addresses: pages show it to everybody."""
    return {
        "node": manager.uid,
        "server": server_name(),
        "clients": len(here.people),
        "messages": here.messages,
        "received": manager.mesh.counters.messages_received if manager.mesh else 0,
        "peers": [
            {
                "node": peer.uid,
                "state": str(peer.state),
                "clients": peer.clients,
                "roundTripSeconds": peer.round_trip_seconds,
            }
            for peer in manager.peers
        ],
    }


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
    print(f"chat server {server_name()} listening on http://{settings.host}:{server.server_port}", flush=True)
    here.start()
    stop = Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal_handler(signal_number, stop.set)
    stop.wait()
    server.stop()


if __name__ == "__main__":
    serve()
