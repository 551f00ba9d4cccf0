"""Handles of `host` and `swarm` processes, as the measures on one node need them."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .children import BenchmarkError, Child, Children, children, python

__all__ = ["CONTENDERS", "Host", "Swarm", "Tally", "one_node"]

START_SECONDS = 15.0
TALLY_SECONDS = 30.0
CONNECTS_PER_SECOND = 150
"""At the very least, with all processes on one busy core."""

CONTENDERS = {
    "mesh": "GeventMeshManager",
    "queues": "GeventMeshManager(direct_writes=False)",
    "stock": "python-socketio's Manager",
}


@dataclass(frozen=True)
class Tally:
    """What the clients of a swarm had.

    Attributes:
        delays_ms: for each event, by its number, from emission to each client.
    """

    lost: int
    doubled: int
    dropped: int
    delays_ms: dict[int, list[float]]

    def check(self) -> None:
        """Refuse figures of a run in which something went wrong.

        Raises:
            BenchmarkError: it did.
        """
        if self.lost or self.doubled or self.dropped:
            raise BenchmarkError(f"events lost: {self.lost}, doubled: {self.doubled}; clients dropped: {self.dropped}")


class Host:
    """A server process."""

    def __init__(self, started: Children, name: str, *arguments: str) -> None:
        self.child = started.start(name, python("benchmarks.host", *arguments))
        self.port = int(self.child.line(r"listening on (\d+)", START_SECONDS)[1])

    def ask(self, action: str, patience: float = START_SECONDS, /, **query: Any) -> Any:
        """Have it do something, and wait for its answer."""
        words = "&".join(f"{name}={value}" for name, value in query.items())
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{action}?{words}", timeout=patience) as response:
                return json.load(response)
        except OSError as error:
            raise BenchmarkError(f"{self.child.name} was asked to {action}: {error}") from error

    def cpu_seconds(self) -> float:
        """User and system time so far, finer than the system's ticks."""
        return float(self.ask("cost")["cpu_seconds"])

    def resident_bytes(self) -> int:
        """Of memory, without garbage."""
        self.ask("collect")
        return int(self.ask("cost")["resident_bytes"])

    def settle(self, clients: int, seconds: float) -> None:
        """Wait until so many clients are connected, and all work on those that went is done."""
        if not self.ask("settle", seconds + START_SECONDS, clients=clients, seconds=seconds):
            raise BenchmarkError(f"{self.child.name} has other than {clients:,} clients: {self.ask('state')}")


class Swarm:
    """A process full of clients."""

    def __init__(self, started: Children, number: int = 0) -> None:
        self.name = f"swarm {number + 1}"
        # Not `python()`: it reads its standard input itself, and ends with it.
        command = [sys.executable, "-m", "benchmarks.swarm", f"127.0.{1 + number // 250}.{1 + number % 250}"]
        self._child: Child = started.start(self.name, command)

    def tell(self, command: str, *arguments: float) -> None:
        """Give a command; see `benchmarks.swarm`."""
        self._child.tell(" ".join([command, *map(str, arguments)]))

    def hear(self, answer: str, seconds: float) -> int:
        """Wait for what it says when it is done, and for the number that goes with it."""
        return int(self._child.line(rf"^{answer} (\d+)", seconds)[1])

    def connect(self, port: int, count: int) -> None:
        """Connect so many more clients, and wait for it."""
        self.tell("connect", port, count)
        self.hear("connected", START_SECONDS + count / CONNECTS_PER_SECOND)

    def tally(self) -> Tally:
        """What they had since the last time."""
        self.tell("tally")
        told = json.loads(self._child.line(r"^\{", TALLY_SECONDS).string)
        delays = {int(number): [us / 1000 for us in delays] for number, delays in told.pop("delays_us").items()}
        return Tally(delays_ms=delays, **told)


@contextmanager
def one_node(contender: str) -> Iterator[tuple[Host, Swarm]]:
    """A server and a swarm, for as long as the block runs."""
    with children() as started:
        host, swarm = Host(started, "server", contender), Swarm(started)
        swarm.connect(host.port, 1)
        host.settle(1, START_SECONDS)
        yield host, swarm
