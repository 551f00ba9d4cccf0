"""A small Flask-SocketIO application, as users write them: for gunicorn and `socketio.run`; `flask run` refuses it.

Discovery and port come from the environment.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import flask
import flask_socketio
import gevent

from gevent_mesh import GeventMeshManager

__all__ = ["app"]

logging.basicConfig(level=logging.INFO)

app = flask.Flask(__name__)
drain_rate = float(os.environ.get("DRAIN_RATE", "100"))
manager = GeventMeshManager(heartbeat_interval=1.0, heartbeat_timeout=3.0, drain_rate=drain_rate)
socketio = flask_socketio.SocketIO(app, client_manager=manager)


@app.get("/state")
def state() -> dict[str, Any]:
    alive = [peer.uid for peer in manager.peers if peer.state == "alive"]
    return {"pid": os.getpid(), "uid": manager.uid, "alive": alive}


@app.get("/emit/<event>/<int:first>/<int:count>")
def emit(event: str, first: int, count: int) -> dict[str, Any]:
    for number in range(first, first + count):
        socketio.emit(event, number)
    return state()


@socketio.on("where")  # type: ignore[untyped-decorator]  # Flask-SocketIO has no types
def where() -> int:
    return os.getpid()


@socketio.on("say")  # type: ignore[untyped-decorator]  # Flask-SocketIO has no types
def say(text: str) -> None:
    flask_socketio.emit("said", text, broadcast=True, include_self=False)


@socketio.on("disconnect")  # type: ignore[untyped-decorator]  # Flask-SocketIO has no types
def gone(_reason: Any = None) -> None:
    gevent.sleep(0.05)
    flask_socketio.emit("gone", flask.request.sid, broadcast=True)  # type: ignore[attr-defined]  # Flask-SocketIO's


def main() -> None:
    def announce() -> None:
        while socketio.wsgi_server is None or not socketio.wsgi_server.started:
            gevent.sleep(0.005)
        print(json.dumps({"http_port": socketio.wsgi_server.server_port}), flush=True)

    gevent.spawn(announce)
    socketio.run(app, host="127.0.0.1", port=0)


if __name__ == "__main__":
    main()
