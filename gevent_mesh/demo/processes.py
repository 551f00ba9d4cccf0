"""The demo's processes: a discovery service and some chat servers as children of this one.

Rules:

- A child that dies is reported at once, with the end of its log, and is not started again.
- However this process ends, its children end: by SIGTERM and then SIGKILL to each one's process id when it can still
  say so, through `gevent_mesh.demo.child` when it cannot.
- Nothing waits without a deadline.
- Everything listens on the loopback address; there is no token, which keeps the mesh there too.
"""

from __future__ import annotations

import collections
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

__all__ = ["CHAT_WITH_CHECK", "ENDING", "Child", "Demo", "DemoError", "Figures", "require_modules", "signals_held_back"]

HOST = "127.0.0.1"
START_SECONDS = 20.0  # a cold start of Python with Flask takes about 1 s; this is for a machine that is busy
STOP_SECONDS = 4.0
HTTP_SECONDS = 1.0
LOG_LINES = 25
LOG_LINE_BYTES = 4096

DISCOVERY = "gevent_mesh_discovery"
CHAT = "gevent_mesh_examples.chat"
CHAT_WITH_CHECK = "gevent_mesh_examples.chat.check"

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask this process to end."""

# What the user's own servers may be set up with is not meant for the demo.
OUR_VARIABLES = re.compile(r"MESH_\w+|HOST|PORT|METRICS_HOST|METRICS_PORT|CHAT_NAME")


class DemoError(Exception):
    """The demo cannot go on.

    Attributes:
        exit_code: 2 when the user can mend it by other options, else 1.
    """

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@contextmanager
def signals_held_back() -> Iterator[None]:
    """What a signal raises in the main thread is raised at the end: no child is started and then not remembered."""
    came: list[int] = []
    handlers = {number: handler for number in ENDING if callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


class Child:
    """One child process, the end of its log, and the line by which it says that it is ready."""

    def __init__(
        self, name: str, module: str, ready: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.reported = False
        self._ready_pattern = re.compile(ready)
        self._ready_match: re.Match[str] | None = None
        self._said_something = threading.Event()
        self._log: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        # A session of its own: Ctrl-C in the terminal reaches only us, and we end the children in our order.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gevent_mesh.demo.child", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, name=f"log of {name}", daemon=True)
        self._reader.start()

    def __repr__(self) -> str:
        return f"<Child {self.name} pid={self.process.pid} code={self.process.poll()}>"

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self, seconds: float) -> str:
        """Wait for its startup line.

        Returns:
            The first group of the `ready` pattern.

        Raises:
            DemoError: it ended, or said nothing in time.
        """
        self._said_something.wait(seconds)
        if self._ready_match is None:
            if self.running and not self._said_something.is_set():
                raise DemoError(f"{self.name} was not ready within {seconds:.0f} s.\n{self.log()}")
            self.process.wait(STOP_SECONDS)
            self.reported = True
            raise DemoError(self.obituary(), exit_code=2 if self.process.returncode == 2 else 1)
        return self._ready_match[1]

    def obituary(self) -> str:
        """How it ended, and its last words."""
        return f"{self.name} (pid {self.process.pid}) {_how_it_ended(self.process.returncode)}.\n{self.log()}"

    def log(self) -> str:
        """The last lines of its output, indented."""
        self._reader.join(0.5)
        lines = list(self._log) or ["(it wrote nothing)"]
        return "\n".join(f"    {line}" for line in lines)

    def ask_to_end(self) -> None:
        if self.running:
            self.process.terminate()

    def end(self, seconds: float) -> None:
        """Wait for the end; kill it when that takes too long."""
        try:
            self.process.wait(max(seconds, 0.05))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
        if self.process.stdin:
            self.process.stdin.close()

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for raw in iter(lambda: self.process.stdout.readline(LOG_LINE_BYTES), b""):  # type: ignore[union-attr] # a pipe
            line = raw.decode(errors="replace").rstrip()
            self._log.append(line)
            if self._ready_match is None and (match := self._ready_pattern.search(line)):
                self._ready_match = match
                self._said_something.set()
        self._said_something.set()


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "still runs"
    if code >= 0:
        return f"has ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


@dataclass(frozen=True, slots=True)
class Figures:
    """What the live line shows. `messages` were said in the chat, `events` went from one server to another."""

    servers: int
    servers_wanted: int
    links: int
    clients: int
    messages: int
    events: int

    @property
    def links_wanted(self) -> int:
        return self.servers_wanted * (self.servers_wanted - 1) // 2

    def __str__(self) -> str:
        return (
            f"servers {self.servers}/{self.servers_wanted} · links {self.links}/{self.links_wanted} · "
            f"clients {self.clients} · messages {self.messages} · events between servers {self.events}"
        )


class Demo:
    """The children. Use it as a context manager: it starts them all, and ends them all."""

    def __init__(self, nodes: int, port: int, *, chat: str = CHAT) -> None:
        self.nodes = nodes
        self.port = port
        self.chat = chat
        self.discovery: Child | None = None
        self.servers: list[Child] = []
        self.urls: list[str] = []
        # The demo talks to its own children only: a proxy that is set up for the internet is not asked.
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Demo:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def children(self) -> list[Child]:
        return [child for child in (self.discovery, *self.servers) if child is not None]

    def start(self) -> None:
        """Start discovery, then all servers at once.

        Raises:
            DemoError: something is missing, a port is taken, or a child did not come up.
        """
        require_modules("flask_socketio", "gevent_mesh_examples", DISCOVERY)
        if self.port:
            _require_free_ports(self.port, self.nodes)
        environment = {name: value for name, value in os.environ.items() if not OUR_VARIABLES.fullmatch(name)}
        environment |= {"PYTHONUNBUFFERED": "1", "HOST": HOST, "MESH_PORT": "0"}
        deadline = time.monotonic() + START_SECONDS
        arguments = ["--host", HOST, "--port", "0"]
        with signals_held_back():
            self.discovery = Child("discovery", DISCOVERY, r"listening on (ws://\S+)", arguments, environment)
        environment["MESH_DISCOVERY"] = self.discovery.wait_until_ready(START_SECONDS)
        for index in range(self.nodes):
            name = f"server-{index + 1}"
            own = {"PORT": str(self.port + index if self.port else 0), "CHAT_NAME": name}
            with signals_held_back():
                self.servers.append(Child(name, self.chat, r"listening on (http://\S+)", [], environment | own))
        self.urls = [server.wait_until_ready(deadline - time.monotonic()) for server in self.servers]

    def stop(self) -> None:
        """End all children; those that do not listen are killed. Takes `STOP_SECONDS` and a little at most."""
        children = self.children
        for child in children:
            child.ask_to_end()
        deadline = time.monotonic() + STOP_SECONDS
        for child in children:
            child.end(deadline - time.monotonic())

    def kill(self) -> None:
        """The last resort: end all children this instant."""
        for child in self.children:
            child.process.kill()

    def newly_dead(self) -> list[Child]:
        """Children that have ended since the last call, without having been asked to."""
        dead = [child for child in self.children if not child.running and not child.reported]
        for child in dead:
            child.reported = True
        return dead

    def require_all_running(self) -> None:
        """Raise DemoError if a child has ended."""
        if dead := self.newly_dead():
            raise DemoError("\n".join(child.obituary() for child in dead))

    def states(self) -> list[dict[str, Any] | None]:
        """What each server says of itself and the mesh; None for one that does not answer."""
        return [self._state(server, url) for server, url in zip(self.servers, self.urls, strict=True)]

    def figures(self) -> Figures:
        states = [state for state in self.states() if state is not None]
        peers = [(state["node"], peer) for state in states for peer in state["peers"]]
        alive = {(node, peer["node"]) for node, peer in peers if peer["state"] == "alive"}
        return Figures(
            servers=len(states),
            servers_wanted=self.nodes,
            links=sum((b, a) in alive for a, b in alive) // 2,
            clients=sum(state["clients"] for state in states),
            messages=sum(state["messages"] for state in states),
            events=sum(state["received"] for state in states),
        )

    def _state(self, server: Child, url: str) -> dict[str, Any] | None:
        if not server.running:
            return None
        try:
            with self._http.open(f"{url}/mesh", timeout=HTTP_SECONDS) as answer:
                state: dict[str, Any] = json.load(answer)
        except (OSError, ValueError, http.client.HTTPException):  # it may die while it answers
            return None
        return state


def require_modules(*names: str) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise DemoError(f"The demo needs {', '.join(missing)}: pip install 'gevent-mesh[demo]'", exit_code=2)


def _require_free_ports(first: int, count: int) -> None:
    if first + count - 1 > 65535:
        raise DemoError(f"There are no {count} ports from {first} on; choose a smaller --port.", exit_code=2)
    for port in range(first, first + count):
        with socket.socket() as probe:
            # As servers do it: a connection that was closed a minute ago does not count.
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                reason = error.strerror or str(error)
                raise DemoError(
                    f"Port {port} cannot be used ({reason}). Choose another --port, or --port 0 for any free ones.",
                    exit_code=2,
                ) from None
