"""Too many who knock, no descriptors, and clocks that jump."""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.clients import Client
from tests.integration.processes import FULL, Fleet, Node, Process, linked
from tests.nemesis.faults import HEARTBEATS, counters, time_until
from tests.nemesis.figures import Figures
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

TOKEN = "a token for these tests"
STRANGERS = 1000
LIMIT = 128


# ---------------------------------------------------------------------- strangers


class Crowd:
    """Connections that say nothing; with `persistent`, whoever is cut comes back at once."""

    def __init__(self, port: int, count: int, *, persistent: bool = False) -> None:
        self._port = port
        self._persistent = persistent
        self._stopping = False
        self.came = 0
        self._poll = select.poll()
        self._socks: dict[int, socket.socket] = {}
        for _ in range(count):
            self._come()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._socks)

    def _come(self) -> None:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        self.came += 1
        self._socks[sock.fileno()] = sock
        self._poll.register(sock, select.POLLIN)

    def _watch(self) -> None:
        while self._socks and not self._stopping:
            for number, _ in self._poll.poll(100):
                self._poll.unregister(number)
                self._socks.pop(number).close()
                if self._persistent:
                    self._come()

    def end(self) -> None:
        self._stopping = True
        self._thread.join()
        for sock in self._socks.values():
            sock.close()
        self._socks.clear()


def accepted(node: Node) -> int:
    """Connections to its mesh port that a node holds."""
    return sum(
        found.status == psutil.CONN_ESTABLISHED and found.laddr.port == node.ws_port
        for found in psutil.Process(node.pid).net_connections("tcp")
    )


@pytest.mark.row(
    "1,000 silent strangers", "at most 128 held, all gone within 6 s, a legitimate node joins meanwhile within 6 s"
)
def test_a_thousand_silent_strangers_are_gone_in_time_and_keep_nobody_out(ships: Fleet, figures: Figures) -> None:
    discovery = ships.discovery(token=TOKEN)
    options = {"auth_token": TOKEN, "ws_host": "127.0.0.1", **HEARTBEATS}
    node = ships.node(discovery, **options)
    began = time.monotonic()
    crowd = Crowd(node.ws_port, STRANGERS)
    newcomer = ships.node(discovery, **options)
    held = 0
    try:
        figures["joined_seconds"] = time_until(lambda: newcomer.sees(node), 6) + newcomer.ready_at - newcomer.started_at
        while len(crowd) and time.monotonic() - began < 10:
            # One is the newcomer.
            held = max(held, accepted(node) - 1)
            eventually(lambda: True)
        figures["gone_seconds"] = time.monotonic() - began
    finally:
        crowd.end()
    figures["held"] = held
    assert held <= LIMIT
    assert figures["gone_seconds"] < 6
    assert figures["joined_seconds"] < 6
    assert "Traceback" not in node.output


@pytest.mark.skipif(not FULL, reason="only at full size")
@pytest.mark.row("strangers who come back whenever they are cut", "a legitimate node joins within 6 s")
def test_strangers_who_come_back_at_once_keep_nobody_out(ships: Fleet, figures: Figures) -> None:
    discovery = ships.discovery(token=TOKEN)
    options = {"auth_token": TOKEN, "ws_host": "127.0.0.1", **HEARTBEATS}
    node = ships.node(discovery, **options)
    crowd = Crowd(node.ws_port, 2 * LIMIT, persistent=True)
    try:
        newcomer = ships.node(discovery, **options)
        figures["joined_seconds"] = time_until(lambda: newcomer.sees(node), 6)
    finally:
        crowd.end()
    figures["strangers"] = crowd.came
    lines = re.findall(r"cut a connection", node.output)
    assert len(lines) <= time.monotonic() - node.ready_at + 1
    assert "Traceback" not in node.output


# ---------------------------------------------------------------------- descriptors


class Exhausted:
    """A process that gets no descriptor any more, until the block ends."""

    def __init__(self, process: Process) -> None:
        self._process = psutil.Process(process.pid)
        self._before = self._process.rlimit(psutil.RLIMIT_NOFILE)

    def __enter__(self) -> None:
        # The lowest free number is the next one.
        used = {int(path.name) for path in Path(f"/proc/{self._process.pid}/fd").iterdir()}
        free = next(number for number in range(len(used) + 1) if number not in used)
        self._process.rlimit(psutil.RLIMIT_NOFILE, (free, self._before[1]))

    def __exit__(self, *_: object) -> None:
        self._process.rlimit(psutil.RLIMIT_NOFILE, self._before)


EXHAUSTED_SECONDS = 30.0 if FULL else 2.5


@pytest.mark.row("descriptors exhausted", "links stay up; joins within 2 s of release; at most one log line a second")
def test_a_node_without_descriptors_keeps_its_links_and_takes_newcomers_when_it_has_some(
    ships: Fleet, clients: list[Client], figures: Figures
) -> None:
    discovery = ships.discovery()
    nodes = ships.nodes(2, discovery, **HEARTBEATS)
    linked(nodes)
    node, other = nodes
    clients.append(Client(other.url))
    node.do("start_traffic", 100)
    clients[0].wait_for_number(node.boot, 1)
    first = {node.boot: clients[0].checker.highest(node.boot)}
    position = len(node.output)
    began = time.monotonic()
    with Exhausted(node):
        # Others knock all the while.
        knocking = [socket.create_connection(("127.0.0.1", node.ws_port), timeout=10) for _ in range(20)]
        newcomer = ships.node(discovery, **HEARTBEATS)
        eventually(lambda: time.monotonic() - began > EXHAUSTED_SECONDS, EXHAUSTED_SECONDS + 5)
        assert not newcomer.sees(node)
        # An event that is emitted now still arrives.
        highest = clients[0].checker.highest(node.boot)
        clients[0].wait_for_number(node.boot, highest + 50)
    exhausted_for = time.monotonic() - began
    figures["exhausted_seconds"] = exhausted_for
    figures["joined_seconds"] = time_until(lambda: newcomer.sees(node), 10)
    for sock in knocking:
        sock.close()
    lines = node.output[position:].count("cannot accept")
    figures["lines"] = lines
    figures["links_down"] = counters(node)["links_down"] + counters(other)["links_down"]
    assert figures["joined_seconds"] < 2
    assert 1 <= lines <= exhausted_for + 1
    assert figures["links_down"] == 0
    assert "Traceback" not in node.output
    sent = node.do("stop_traffic")
    clients[0].wait_for_number(node.boot, sent)
    assert clients[0].checker.report({node.boot: sent}, first).is_perfect


@pytest.mark.skipif(not FULL, reason="only at full size")
@pytest.mark.row(
    "descriptors of discovery exhausted", "links and registrations stay; a newcomer is told of within 2 s of release"
)
def test_a_discovery_without_descriptors_keeps_its_members(ships: Fleet, figures: Figures) -> None:
    discovery = ships.discovery()
    nodes = ships.nodes(2, discovery, **HEARTBEATS)
    linked(nodes)
    began = time.monotonic()
    position = len(discovery.output)
    with Exhausted(discovery):
        newcomer = ships.node(discovery, **HEARTBEATS)
        eventually(lambda: time.monotonic() - began > 4.0)
        assert newcomer.state()["discovery"] == [False]
        assert all(node.state()["discovery"] == [True] for node in nodes)
    exhausted_for = time.monotonic() - began
    figures["joined_seconds"] = time_until(lambda: len(newcomer.links()) == 2, 10)
    figures["lines"] = discovery.output[position:].count("cannot accept")
    assert figures["joined_seconds"] < 2
    assert 1 <= figures["lines"] <= exhausted_for + 1
    assert sum(counters(node)["links_down"] for node in nodes) == 0
    assert "Traceback" not in discovery.output


# ---------------------------------------------------------------------- clocks

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


class WallClock:
    """The wall clock of some processes, which jumps when it is told to. Their monotonic one goes on."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self.jump(0)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}s")
        new.replace(self._file)


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
@pytest.mark.row("wall clock jumps an hour either way", "no link goes down; leases hold; 0 lost")
def test_wall_clock_jumps_end_no_link_and_no_lease(
    ships: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    clock = WallClock(tmp_path)
    for name, value in clock.variables.items():
        monkeypatch.setenv(name, value)
    discovery = ships.discovery()
    nodes = ships.nodes(2, discovery, **HEARTBEATS)
    for name in clock.variables:
        monkeypatch.delenv(name)
    linked(nodes)
    for number, jump in enumerate((3600, -3600), 1):
        before = nodes[0].do("wall_clock")
        clock.jump(jump)
        eventually(lambda jump=jump: abs(nodes[0].do("wall_clock") - time.time() - jump) < 5)  # type: ignore[misc]  # bound now
        figures[f"jump_{number}_seconds"] = round(nodes[0].do("wall_clock") - before)
        heard_for(nodes, HEARTBEATS["heartbeat_timeout"] + 0.5)
        nodes[0].do("cluster", "server_side_emit", "note", number)
        eventually(lambda number=number: nodes[1].do("server_events")[-1:] == [[number]])  # type: ignore[misc]  # bound now
    figures["links_down"] = sum(counters(node)["links_down"] for node in nodes)
    assert figures["links_down"] == 0
    assert nodes[1].do("server_events") == [[1], [2]]
    assert "was silent" not in discovery.output
    assert discovery.output.count(" registered ") == 2


def heard_for(nodes: list[Node], seconds: float) -> None:
    """For so long, all see each other."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert all(node.sees(other) for node in nodes for other in nodes if node is not other)
        assert all(node.state()["discovery"] == [True] for node in nodes)
