"""Processes of a real mesh: discovery, nodes, proxies, gunicorn. Each is ended by its own id, whatever happens.

A `Fleet` owns what it started and writes their output to files, which are shown when a test fails.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gevent_mesh.protocol.address import parse_address
from tests.integration.checker import Account
from tests.integration.namespaces import inside, present
from tests.integration.node import dumps, loads
from tests.ports import reserved_port
from tests.support import eventually

__all__ = [
    "FULL",
    "ControlError",
    "Crew",
    "Discovery",
    "Fleet",
    "Node",
    "Page",
    "Proxy",
    "fleet",
    "linked",
    "running_fleets",
]

FULL = os.environ.get("MESH_FULL") == "1"
"""Whether to take the time for the figures that the project promises, instead of smaller ones."""

START_SECONDS = 20.0
END_SECONDS = 5.0
CONTROL_SECONDS = 20.0
LOG_TAIL_CHARS = 6000
ROOT = Path(__file__).resolve().parent.parent.parent

# What the machine is set up with is not meant for a test.
_UNWANTED = re.compile(r"MESH_\w+|HOST|PORT|METRICS_\w+|FLASK_\w+|GUNICORN_\w+")


class ControlError(Exception):
    """What was asked for raised.

    Attributes:
        kind: the name of the exception's class.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


class Process:
    """One process; its output goes to a file.

    Args:
        name: for people.
        command: what to run.
        log: the file.
        variables: its environment, beyond ours.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, variables: dict[str, str]) -> None:
        self.name = name
        self.log = log
        self.namespace = present()
        kept = {key: value for key, value in os.environ.items() if not _UNWANTED.fullmatch(key)}
        paths = os.pathsep.join([str(ROOT), str(ROOT / "discovery")])
        self.started_at = time.monotonic()
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**kept, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **variables},
                # Ctrl-C in a terminal is for pytest, which ends us one by one.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def wait_for(self, pattern: str, seconds: float = START_SECONDS) -> re.Match[str]:
        """Wait until its output has this."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.output, re.MULTILINE)
            if found is None and self.popen.poll() is not None:
                raise RuntimeError(f"{self.name} ended with code {self.popen.returncode}:\n{self.tail()}")
            return found

        found = eventually(look, seconds)
        assert found is not None
        return found

    def tail(self) -> str:
        return self.output[-LOG_TAIL_CHARS:]

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        self.popen.kill()
        self.popen.wait(END_SECONDS)

    def wait(self, seconds: float = END_SECONDS) -> int:
        return self.popen.wait(seconds)

    def ask_to_end(self) -> None:
        if self.popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.popen.send_signal(signal.SIGCONT)
                self.popen.terminate()

    def end(self, deadline: float) -> None:
        try:
            self.popen.wait(max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
        if self.popen.stdin is not None:
            self.popen.stdin.close()


class _Controlled(Process):
    """A process with a control channel; its startup line is JSON."""

    def read_line(self) -> dict[str, Any]:
        found = self.wait_for(r'^\{"http_port".*\}$')
        self.ready_at = time.monotonic()
        line: dict[str, Any] = json.loads(found[0])
        self.http_port: int = line["http_port"]
        return line

    def do(self, operation: str, *arguments: Any, **options: Any) -> Any:
        """Have the process do something, and return what came of it."""
        body = dumps({"operation": operation, "arguments": arguments, "options": options})
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=CONTROL_SECONDS)
        try:
            with inside(self.namespace):
                connection.connect()
            connection.request("POST", "/control", body)
            answer = loads(connection.getresponse().read())
        finally:
            connection.close()
        if "error" in answer:
            raise ControlError(answer["error"], answer["text"])
        return answer["value"]

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.do("state")
        return state


class Discovery(Process):
    """The discovery service."""

    port: int

    def read_line(self) -> None:
        self.url = self.wait_for(r"^gevent-mesh-discovery listening on (wss?://\S+)")[1]
        self.port = parse_address(self.url).port


class Proxy(_Controlled):
    """See `tests.integration.proxy`."""

    def route(self) -> int:
        port: int = self.do("route")
        return port


class Node(_Controlled):
    """See `tests.integration.node`."""

    uid: str
    boot: str
    ws_port: int
    route: int = 0
    """The port of its proxy, when it has one."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def health(self, path: str = "/readyz") -> tuple[int, dict[str, Any]]:
        """What a probe is answered: the status, and the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=CONTROL_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    @property
    def is_ready(self) -> bool:
        return self.health()[0] == 200

    def links(self) -> set[str]:
        """uids of the peers that a link is up to."""
        return set(self.state()["links"])

    def sees(self, other: Node) -> bool:
        return other.uid in self.links()

    def account(self) -> Account:
        """What it has heard, if it has an ear."""
        return Account.read(self.do("account"))

    def considers_alive(self, other: Node) -> bool:
        info = self.state()["peers"].get(other.uid)
        return info is not None and info["state"] == "alive"


class Crew(_Controlled):
    """See `tests.nemesis.crew`."""


class Page(_Controlled):
    """See `tests.integration.page`."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"


_P = TypeVar("_P", bound=Process)


class Fleet:
    """Starts processes, and ends all of them.

    Args:
        folder: for their logs.
        embedded_port: where those find each other that are not told of a discovery service.

    Attributes:
        variables: the environment of all that are started from now on.
    """

    def __init__(self, folder: Path, embedded_port: int) -> None:
        self.embedded_port = embedded_port
        self.variables = {"MESH_EMBEDDED_PORT": str(embedded_port)}
        self._folder = folder
        self._processes: list[Process] = []

    def discovery(self, *, host: str = "127.0.0.1", port: int = 0, token: str = "") -> Discovery:
        """Start discovery, and wait until it listens. Only a port that the system gave out before is not 0."""
        variables = {"MESH_AUTH_TOKEN": token} if token else {}
        command = [*_python("gevent_mesh_discovery"), "--host", host, "--port", str(port)]
        discovery = self._add(Discovery, "discovery", command, variables)
        discovery.read_line()
        return discovery

    def proxy(self) -> Proxy:
        proxy = self._add(Proxy, "proxy", _python("tests.integration.proxy"), {})
        proxy.read_line()
        return proxy

    def node(self, discovery: Discovery | None, *, proxy: Proxy | None = None, **options: Any) -> Node:
        """Start one node (see `nodes`)."""
        return self.nodes(1, discovery, proxy=proxy, **options)[0]

    def nodes(
        self,
        count: int,
        discovery: Discovery | None,
        *,
        proxy: Proxy | None = None,
        server: dict[str, Any] | None = None,
        url: str | Sequence[str] | None = None,
        patched: bool = False,
        ear: bool = False,
        log: str = "INFO",
        **manager: Any,
    ) -> list[Node]:
        """Start nodes, all at once, and wait until they serve.

        Args:
            count: how many.
            discovery: where they register; None for the discovery that they serve themselves.
            proxy: what their addresses lead through.
            server: options of their `socketio.Server`.
            url: where they find discovery, or several, if not at its own address; `[]` has them work alone.
            patched: whether they are monkey-patched.
            ear: whether they keep account of what they hear (see `tests.integration.ear`).
            log: their level of logging.
            manager: options of their `GeventMeshManager`.
        """
        started = []
        for _ in range(count):
            route = proxy.route() if proxy is not None else 0
            address = {"server_address": f"ws://127.0.0.1:{route}"} if route else {}
            options = {
                "discovery": url if url is not None else (discovery.url if discovery else None),
                "server": server or {},
                "manager": {**manager, **address},
                "ear": ear,
                "log": log,
            }
            command = [*_python("tests.integration.node"), json.dumps(options), *(["--patched"] if patched else [])]
            node = self._add(Node, f"node-{len(self._processes)}", command, {})
            node.route = route
            started.append(node)
        for node in started:
            line = node.read_line()
            node.uid, node.ws_port = line["uid"], line["ws_port"]
            node.boot = node.state()["boot"]
            if proxy is not None:
                proxy.do("lead", node.route, node.ws_port, node.uid)
        return started

    def crew(self, nodes: int, url: str, **manager: Any) -> Crew:
        """Start a process with several nodes, which join when they are told to."""
        options = json.dumps({"nodes": nodes, "discovery": url, "manager": manager})
        crew = self._add(Crew, "crew", [*_python("tests.nemesis.crew"), options], {})
        crew.read_line()
        return crew

    def page(self, path: str, discovery: Discovery) -> Page:
        """Run a page of the documentation that makes a server."""
        command = [*_python("tests.integration.page"), str(ROOT / path)]
        page = self._add(Page, "page", command, {"MESH_DISCOVERY": discovery.url})
        page.read_line()
        return page

    def program(self, name: str, command: Sequence[str], **variables: str) -> Process:
        """Start anything else."""
        return self._add(Process, name, command, variables)

    def end(self) -> None:
        for process in reversed(self._processes):
            process.ask_to_end()
        deadline = time.monotonic() + END_SECONDS
        for process in reversed(self._processes):
            process.end(deadline)

    def logs(self) -> list[tuple[str, str]]:
        """What each process has written last."""
        return [
            (f"{process.name} (process {process.pid}, code {process.popen.poll()})", process.tail())
            for process in self._processes
        ]

    def _add(self, kind: type[_P], name: str, command: Sequence[str], variables: dict[str, str]) -> _P:
        log = self._folder / f"{len(self._processes)}-{name}.log"
        process = kind(name, command, log, {**self.variables, **variables})
        self._processes.append(process)
        return process


_running: list[Fleet] = []


def running_fleets() -> list[Fleet]:
    """Those whose logs tell why a test failed."""
    return list(_running)


@contextlib.contextmanager
def fleet() -> Iterator[Fleet]:
    """A fleet that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="gevent-mesh-test-") as folder, reserved_port() as port:
        started = Fleet(Path(folder), port)
        _running.append(started)
        try:
            yield started
        finally:
            started.end()
            _running.remove(started)


def linked(nodes: Sequence[Node], seconds: float = 10.0) -> None:
    """Wait until there is a link between each two of the nodes."""
    uids = {node.uid for node in nodes}
    for node in nodes:
        eventually(lambda node=node: node.links() >= uids - {node.uid}, seconds)  # type: ignore[misc]  # bound now


def _python(module: str) -> list[str]:
    """The command that runs a module so that it ends when we do, even when we are killed."""
    return [sys.executable, "-m", "gevent_mesh.demo.child", module]
