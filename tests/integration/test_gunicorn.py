"""A Flask-SocketIO application under what people serve it with: gunicorn, `socketio.run`, and not `flask run`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from gevent_mesh.protocol.websocket import Opcode
from tests.browser import connect, frame_start
from tests.integration.clients import Client
from tests.integration.page import python_of
from tests.integration.processes import ROOT, Discovery, Fleet, Process
from tests.integration.programs import gone
from tests.support import eventually

pytestmark = pytest.mark.integration

APP = "tests.integration.flask_app"
WORKER = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"
GRACEFUL_SECONDS = 1


class Server:
    """An address that one or several processes serve."""

    def __init__(self, process: Process, pattern: str) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{process.wait_for(pattern)[1]}"

    def get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def workers(self, count: int, peers: int) -> dict[int, str]:
        """Wait until so many workers have answered that have so many links each: uids by process id."""
        ready: dict[int, str] = {}

        def look() -> bool:
            state = self.get("/state")
            if len(state["alive"]) == peers:
                ready[state["pid"]] = state["uid"]
            else:
                ready.clear()
            return len(ready) == count

        eventually(look, 20)
        return ready


def gunicorn(
    ships: Fleet,
    discovery: Discovery | None,
    *options: str,
    name: str = "gunicorn",
    app: str = f"{APP}:app",
    worker: str = WORKER,
    **variables: str,
) -> Server:
    command = [
        sys.executable, "-m", "gunicorn", "-k", worker, "-b", "127.0.0.1:0", "--no-control-socket",
        "--graceful-timeout", str(GRACEFUL_SECONDS), *options, app,
    ]  # fmt: skip
    if not _knows_control_socket():
        command.remove("--no-control-socket")
    if discovery is not None:
        variables = {"MESH_DISCOVERY": discovery.url, "MESH_PORT": "0", **variables}
    return Server(ships.program(name, command, **variables), r"Listening at: http://127\.0\.0\.1:(\d+)")


def _knows_control_socket() -> bool:
    from gunicorn.config import KNOWN_SETTINGS  # type: ignore[import-untyped]  # it has none

    return any(setting.name == "control_socket_disable" for setting in KNOWN_SETTINGS)


def on_every_worker(server: Server, pids: set[int], clients: list[Client]) -> dict[int, Client]:
    """Connect until each of these processes has a client: whoever accepts first gets it."""
    found: dict[int, Client] = {}

    def connect(_number: int) -> None:
        client = Client(server.url)
        clients.append(client)
        found.setdefault(client.call("where"), client)

    with ThreadPoolExecutor(8) as at_once:
        # Several at a time: one after the other, the same process could be the first each time.
        for _ in range(8):
            list(at_once.map(connect, range(8)))
            if found.keys() >= pids:
                return found
    raise AssertionError(f"clients reached {found.keys()} of {pids}")


def ends(server: Server, seconds: float) -> float:
    """Ask it to end; returns how long that took."""
    began = time.monotonic()
    server.process.signal(signal.SIGTERM)
    assert server.process.wait(seconds) == 0
    return time.monotonic() - began


def test_two_instances_with_one_worker_each(ships: Fleet, clients: list[Client]) -> None:
    discovery = ships.discovery()
    servers = [gunicorn(ships, discovery, "-w", "1", name=f"gunicorn-{n}") for n in (1, 2)]
    for server in servers:
        server.workers(1, peers=1)
        clients.append(Client(server.url))
    servers[0].get("/emit/event/0/100")
    for client in clients:
        assert client.wait_for("event", count=100) == [(number,) for number in range(100)]
    clients[1].io.emit("say", "hello")
    assert clients[0].wait_for("said") == [("hello",)]
    # With clients that stay, it takes the time that it was given, and not more.
    assert ends(servers[0], GRACEFUL_SECONDS + 5) < GRACEFUL_SECONDS + 4
    eventually(lambda: servers[1].get("/state")["alive"] == [])
    assert "Traceback" not in servers[0].process.output


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_workers_of_one_instance_form_a_mesh(ships: Fleet, clients: list[Client], options: list[str]) -> None:
    server = gunicorn(ships, ships.discovery(), "-w", "3", *options)
    workers = server.workers(3, peers=2)
    assert len(set(workers.values())) == 3
    master = psutil.Process(server.process.pid)
    assert workers.keys() == {child.pid for child in master.children()}
    connections = [connection for connection in master.net_connections() if connection.status != psutil.CONN_LISTEN]
    assert connections == []
    assert len(master.net_connections()) == 1

    found = on_every_worker(server, set(workers), clients)
    server.get("/emit/event/0/50")
    for client in clients:
        assert client.wait_for("event", count=50) == [(number,) for number in range(50)]
    found[min(workers)].io.emit("say", "hello")
    for pid, client in found.items():
        if pid != min(workers):
            assert client.wait_for("said") == [("hello",)]

    victim = max(workers)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: {child.pid for child in master.children()} - {victim} - workers.keys(), 10)
    after = server.workers(3, peers=2)
    assert victim not in after
    assert after.items() - workers.items()
    on_every_worker(server, set(after), clients)
    server.get("/emit/again/0/50")
    for client in clients:
        if client.io.connected:
            assert client.wait_for("again", count=50) == [(number,) for number in range(50)]
    processes = [psutil.Process(pid) for pid in after]
    assert ends(server, GRACEFUL_SECONDS + 5) < GRACEFUL_SECONDS + 4
    eventually(lambda: gone(processes))


def test_our_worker_serves_the_same_and_refuses_what_is_too_large(ships: Fleet, clients: list[Client]) -> None:
    server = gunicorn(ships, ships.discovery(), "-k", "gevent_mesh.gunicorn.GeventMeshWorker")
    clients.append(Client(server.url))
    server.get("/emit/event/0/20")
    assert clients[0].wait_for("event", count=20) == [(number,) for number in range(20)]
    with connect(int(server.url.rsplit(":")[-1]), socket) as browser:
        browser.open()
        browser.sock.sendall(frame_start(Opcode.TEXT, 1 << 30))
        assert browser.close_code() == 1009
    assert "At most 1000 connections" in server.process.output
    assert ends(server, GRACEFUL_SECONDS + 5) < GRACEFUL_SECONDS + 4
    assert "Traceback" not in server.process.output


def test_the_readme(ships: Fleet, clients: list[Client], tmp_path: Path) -> None:
    """Its application under its command: four workers, and nothing else."""
    readme = ROOT / "README.md"
    (worker,) = re.findall(r"^gunicorn -k (\S+) -w 4 -b [\d.:]+ app:app$", readme.read_text("utf-8"), re.MULTILINE)
    (tmp_path / "app.py").write_text(python_of(readme), "utf-8")
    server = gunicorn(ships, None, "-k", worker, "-w", "4", "--chdir", str(tmp_path), app="app:app")
    eventually(lambda: server.process.output.count("link up") == 4 * 3, 20)
    clients += [Client(server.url) for _ in range(8)]
    clients[0].io.emit("message", "hello")
    for client in clients:
        assert client.wait_for("message") == [("hello",)]


def test_workers_find_each_other_with_nothing_else_running(ships: Fleet, clients: list[Client]) -> None:
    server = gunicorn(ships, None, "-w", "4", "--preload")
    workers = server.workers(4, peers=3)
    found = on_every_worker(server, set(workers), clients)

    victim = listens_on(ships.embedded_port, workers)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: listens_on(ships.embedded_port, children(server) - {victim}), 3)
    print(f"\n    another worker serves discovery {time.monotonic() - killed:.2f} s after the first one was killed")
    # gunicorn has started another one in its place, and that has found them.
    after = server.workers(4, peers=3)
    assert workers.items() - after.items() == {(victim, workers[victim])}
    server.get("/emit/event/0/50")
    for pid, client in found.items():
        if pid != victim:
            assert client.wait_for("event", count=50) == [(number,) for number in range(50)]
    assert ends(server, GRACEFUL_SECONDS + 5) < GRACEFUL_SECONDS + 4


def children(server: Server) -> set[int]:
    return {child.pid for child in psutil.Process(server.process.pid).children()}


def listens_on(port: int, pids: Iterable[int]) -> int | None:
    """Which of these processes listens there."""
    for pid in pids:
        for connection in psutil.Process(pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                return pid
    return None


def test_socketio_run_and_an_http_route_that_emits_at_once(ships: Fleet, clients: list[Client]) -> None:
    """What a route emits while the mesh is still forming reaches the peers that the roster names."""
    discovery = ships.discovery()
    variables = {"MESH_DISCOVERY": discovery.url, "MESH_PORT": "0"}
    command = [sys.executable, "-m", APP]
    pattern = r'^\{"http_port": (\d+)\}'
    old = Server(ships.program("old", command, **variables), pattern)
    clients.append(Client(old.url))
    for round_ in range(3):
        new = Server(ships.program(f"new-{round_}", command, **variables), pattern)
        at_first = new.get(f"/emit/early {round_}/0/20".replace(" ", "%20"))
        new.workers(1, peers=round_ + 1)
        new.get(f"/emit/early {round_}/20/20".replace(" ", "%20"))
        assert clients[0].wait_for(f"early {round_}", count=40) == [(number,) for number in range(40)]
        assert len(at_first["alive"]) <= round_ + 1
    new.process.signal(signal.SIGINT)
    assert new.process.wait(5) in (0, -signal.SIGINT, 130, 1)


def test_flask_run_is_refused_with_a_text_that_says_what_to_do(ships: Fleet) -> None:
    command = [sys.executable, "-m", "flask", "--app", APP, "run", "--port", "0"]
    process = ships.program("flask run", command)
    assert process.wait(20) != 0
    assert re.search(r"ConfigError: .*flask run.*socketio\.run\(app\)", process.output), process.tail()
