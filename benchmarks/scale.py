"""As many live clients as this machine carries. `make bench-scale`, or `python -m benchmarks.scale --clients 60000`.

Several nodes in one mesh and processes full of WebSocket clients, planned from the limits of the machine (`planning`).
Each client is in a room of one hundred, whose members are spread over the nodes, in one of all, and in one of its own.
Engine.IO's pings are on. In this order: all connect; nothing happens for one ping interval; broadcasts to all, from one
node; events to rooms of a hundred; and every second one in a hundred clients goes and another one comes, while
broadcasts go on. An event that a client did not get, while it was connected, counts as lost; of one to a room,
what is missing to the number of members that the nodes have in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import psutil

from .children import ROOT, BenchmarkError, Children, children, end_on_signals
from .contenders import CONTENDERS, check_installed
from .host import ROOM_CLIENTS
from .local import START_SECONDS, Host, Swarm, Tally
from .measuring import Kind, Measure, Results, Sample, percentile
from .planning import Plan, plan, read_limits
from .report import kept, measure_as_json, print_tables, write

__all__ = ["MEASURE", "main"]

RESULT = ROOT / "benchmarks" / "results" / "scale.json"
MIN_RATE = 300
"""Clients that connect in a second, at the very least."""
STEP_SECONDS = 5.0
IDLE_SECONDS, QUICK_IDLE_SECONDS = 25.0, 1.0
BROADCASTS = 5
ROOM_EVENTS, QUICK_ROOM_EVENTS = 50, 10
ROOM_PAUSE_SECONDS = 0.05
CHURN_SHARE = 0.01
CHURN_SECONDS, QUICK_CHURN_SECONDS = 30.0, 2.0
CHURN_PAUSE_SECONDS = 3.0
DELIVERIES_PER_SECOND = 20_000
"""Of all nodes and swarms together, on two busy cores, at the very least."""

Told = Callable[[str], None]

MEASURE = Measure(
    key="scale",
    title="One mesh with many clients",
    unit="clients",
    points=(60_000,),
    quick_points=(200,),
    contenders={"mesh": "GeventMeshManager"},
    kinds={
        "nodes": Kind("nodes", 0, more_is_better=None),
        "connects_per_second": Kind("clients connected/s, all nodes", 0, more_is_better=True),
        "connect_us": Kind("CPU µs/connect, the pings of those who are there included", 0),
        "kib": Kind("KiB/client, resident, nodes"),
        "system_kib": Kind("KiB/client, everything: both ends, the kernel's buffers"),
        "idle_us": Kind("CPU µs/client/s, nodes, nothing happens but pings"),
        "broadcast_p50_ms": Kind("broadcast: until half have it, ms", 0),
        "broadcast_p99_ms": Kind("until 99 % have it, ms", 0),
        "broadcast_last_ms": Kind("until the last one has it, ms", 0),
        "broadcast_us": Kind("CPU µs/delivery, nodes, without pings", 2),
        "room_p50_ms": Kind("room of 100: until half have it, ms", 2),
        "room_last_ms": Kind("until the last one has it (median), ms", 2),
        "churned": Kind("clients that went and came", 0, more_is_better=None),
        "churn_cores": Kind("cores in use meanwhile, nodes", 2),
        "churn_last_ms": Kind("broadcast meanwhile: until the last one has it (worst), ms", 0),
        "lost": Kind("events lost", 0, never=True),
        "doubled": Kind("events doubled", 0, never=True),
        "dropped": Kind("clients dropped", 0, never=True),
    },
    sample=lambda _contender, clients, quick: measure(plan(clients, 2, read_limits()), quick=quick),
)


class _Cluster:
    """All processes of one run."""

    def __init__(self, started: Children, planned: Plan) -> None:
        _, url = CONTENDERS["mesh"].start_service(started)
        count = len(planned.nodes)
        options = ("mesh", "--discovery", url, "--nodes", str(count), "--pings")
        self.plan = planned
        self.clients = sum(planned.nodes)
        self.hosts = [Host(started, f"node {number + 1}", *options) for number in range(count)]
        self.swarms = [Swarm(started, number) for number in range(len(planned.swarms))]
        self._counts = {"lost": 0, "doubled": 0, "dropped": 0}
        self._form()

    def _form(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while any(host.ask("state")["peers"] < len(self.hosts) - 1 for host in self.hosts):
            if time.monotonic() > deadline:
                raise BenchmarkError("the nodes did not find each other")
            time.sleep(0.1)

    def connect(self, told: Told) -> None:
        """Connect all clients, each node and swarm its share."""
        seconds = START_SECONDS + self.clients / MIN_RATE
        deadline = time.monotonic() + seconds
        for swarm, shares in zip(self.swarms, self.plan.portions(), strict=True):
            for host, share in zip(self.hosts, shares, strict=True):
                if share:
                    swarm.tell("connect", host.port, share)
        while (count := self._connected()) < self.clients:
            told(f"{count:,} of {self.clients:,} clients are connected")
            if time.monotonic() > deadline:
                raise BenchmarkError(f"after {seconds:.0f} s {count:,} of {self.clients:,} clients were connected")
            time.sleep(min(STEP_SECONDS, self.clients / 5000))
        for swarm in self.swarms:
            swarm.hear("connected", START_SECONDS)

    def _connected(self) -> int:
        return sum(int(host.ask("state")["clients"]) for host in self.hosts)

    def cpu_seconds(self) -> float:
        return sum(host.cpu_seconds() for host in self.hosts)

    def resident_bytes(self) -> int:
        return sum(host.resident_bytes() for host in self.hosts)

    def emit(self, events: int = 1, pause: float = 0.0) -> int:
        """Emit from the first node to all; the number of the last event."""
        return int(self.hosts[0].ask("emit", events * pause + self.patience, events=events, pause=pause))

    @property
    def patience(self) -> float:
        """How long one broadcast may take."""
        return START_SECONDS + self.clients / DELIVERIES_PER_SECOND

    def wait_for(self, number: int) -> None:
        """Wait until all clients have had an event."""
        for swarm in self.swarms:
            swarm.tell("await", number)
        for swarm in self.swarms:
            swarm.hear("has", self.patience)

    def delays(self) -> dict[int, list[float]]:
        """Of each event since the last time, by its number: from emission to each client, in milliseconds, ordered."""
        tallies = [swarm.tally() for swarm in self.swarms]
        for tally in tallies:
            self._count(tally)
        numbers = sorted({number for tally in tallies for number in tally.delays_ms})
        return {
            number: sorted(delay for tally in tallies for delay in tally.delays_ms.get(number, ()))
            for number in numbers
        }

    def members(self, room: int) -> int:
        """How many clients of all nodes are in a room of a hundred."""
        return sum(int(host.ask("members", room=room)) for host in self.hosts)

    def lose(self, events: int) -> None:
        """Count events that no client could miss: it does not know of them."""
        self._counts["lost"] += events

    def _count(self, tally: Tally) -> None:
        self._counts["lost"] += tally.lost
        self._counts["doubled"] += tally.doubled
        self._counts["dropped"] += tally.dropped

    def counts(self) -> dict[str, int]:
        """Of everything so far."""
        return dict(self._counts)


@contextmanager
def _cluster(planned: Plan) -> Iterator[_Cluster]:
    with children() as started:
        yield _Cluster(started, planned)


def measure(planned: Plan, *, quick: bool = False, told: Told = lambda _: None) -> Sample:
    """One run.

    Raises:
        BenchmarkError: it could not be taken to the end.
    """
    with _cluster(planned) as cluster:
        told(f"{len(planned.nodes)} nodes are one mesh; {len(planned.swarms)} processes hold the clients")
        sample: Sample = {"nodes": len(planned.nodes)}
        sample |= _connect(cluster, told)
        sample |= _idle(cluster, QUICK_IDLE_SECONDS if quick else IDLE_SECONDS, told)
        sample |= _broadcast(cluster, sample["idle_us"] * cluster.clients / 1e6, told)
        sample |= _rooms(cluster, QUICK_ROOM_EVENTS if quick else ROOM_EVENTS, told)
        sample |= _churn(cluster, QUICK_CHURN_SECONDS if quick else CHURN_SECONDS, told)
        return sample | cluster.counts()


def _connect(cluster: _Cluster, told: Told) -> Sample:
    memory, system = cluster.resident_bytes(), _free_bytes()
    cpu, began = cluster.cpu_seconds(), time.monotonic()
    cluster.connect(told)
    seconds, cpu = time.monotonic() - began, cluster.cpu_seconds() - cpu
    held = cluster.resident_bytes() - memory
    told(f"all {cluster.clients:,} clients are connected after {seconds:.0f} s")
    return {
        "connects_per_second": cluster.clients / seconds,
        "connect_us": cpu * 1e6 / cluster.clients,
        "kib": held / 1024 / cluster.clients,
        "system_kib": (system - _free_bytes()) / 1024 / cluster.clients,
    }


def _free_bytes() -> int:
    return int(psutil.virtual_memory().available)


def _idle(cluster: _Cluster, seconds: float, told: Told) -> Sample:
    told(f"nothing happens for {seconds:.0f} s")
    before, began = cluster.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    used = cluster.cpu_seconds() - before
    return {"idle_us": used * 1e6 / (time.monotonic() - began) / cluster.clients}


def _broadcast(cluster: _Cluster, idle_cores: float, told: Told) -> Sample:
    # One that does not count: buffers in the kernel grow with it.
    cluster.wait_for(cluster.emit())
    cluster.delays()
    before, began = cluster.cpu_seconds(), time.monotonic()
    for _ in range(BROADCASTS):
        cluster.wait_for(cluster.emit())
    used = cluster.cpu_seconds() - before - idle_cores * (time.monotonic() - began)
    delays = list(cluster.delays().values())
    for number, delay in enumerate(delays):
        told(
            f"broadcast {number + 1}: half have it after {percentile(delay, 0.5):.0f} ms, all after {delay[-1]:.0f} ms"
        )
    return {
        "broadcast_p50_ms": _middle([percentile(delay, 0.5) for delay in delays]),
        "broadcast_p99_ms": _middle([percentile(delay, 0.99) for delay in delays]),
        "broadcast_last_ms": _middle([delay[-1] for delay in delays]),
        "broadcast_us": used * 1e6 / BROADCASTS / cluster.clients,
    }


def _rooms(cluster: _Cluster, events: int, told: Told) -> Sample:
    rooms = max(1, cluster.clients // ROOM_CLIENTS)
    members = {room: cluster.members(room) for room in range(min(rooms, events))}
    due = {}
    for turn in range(events):
        due[int(cluster.hosts[0].ask("part", room=turn % rooms))] = members[turn % rooms]
        time.sleep(ROOM_PAUSE_SECONDS)
    # Behind this one everybody has had what is before it. It is a broadcast, and not counted here.
    cluster.wait_for(cluster.emit())
    had = cluster.delays()
    cluster.lose(sum(max(0, count - len(had.get(number, ()))) for number, count in due.items()))
    delays = [had[number] for number in due if number in had]
    if not delays:
        raise BenchmarkError("no event to a room has reached anybody")
    told(f"rooms of {ROOM_CLIENTS}: {len(delays)} events")
    return {
        "room_p50_ms": _middle([percentile(delay, 0.5) for delay in delays]),
        "room_last_ms": _middle([delay[-1] for delay in delays]),
    }


def _churn(cluster: _Cluster, seconds: float, told: Told) -> Sample:
    told(f"{CHURN_SHARE:.0%} of the clients go and come every second, for {seconds:.0f} s")
    before, began = cluster.cpu_seconds(), time.monotonic()
    for swarm, clients in zip(cluster.swarms, cluster.plan.swarms, strict=True):
        swarm.tell("churn", clients * CHURN_SHARE, seconds)
    pause = min(CHURN_PAUSE_SECONDS, seconds / 3)
    cluster.emit(int(seconds / pause), pause)
    replaced = sum(swarm.hear("churned", seconds + START_SECONDS) for swarm in cluster.swarms)
    took, used = time.monotonic() - began, cluster.cpu_seconds() - before
    cluster.wait_for(cluster.emit())
    delays = list(cluster.delays().values())
    told(f"{len(delays)} broadcasts meanwhile; so far {cluster.counts()}")
    return {
        "churned": replaced,
        "churn_cores": used / took,
        "churn_last_ms": max(delay[-1] for delay in delays),
    }


def _middle(values: Sequence[float]) -> float:
    return percentile(sorted(values), 0.5)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--clients", type=click.IntRange(100, 10_000_000), default=60_000, show_default=True)
@click.option("--nodes", type=click.IntRange(2, 32), default=6, show_default=True)
@click.option("--quick", is_flag=True, help="Wait and churn for a few seconds only.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), default=RESULT, help="Where to write.")
def main(clients: int, nodes: int, quick: bool, path: Path) -> None:
    """Have this machine carry as many clients as it can."""
    end_on_signals()
    began = time.monotonic()

    def told(line: str) -> None:
        click.echo(f"[{time.monotonic() - began:4.0f} s] {line}", err=True)

    results = Results(MEASURE)
    try:
        check_installed(["mesh"])
        written = kept(path)
        results.samples[clients, "mesh"] = [measure(plan(clients, nodes, read_limits()), quick=quick, told=told)]
    except BenchmarkError as error:
        click.echo(f"benchmark: {error}", err=True)
        sys.exit(error.exit_code)
    written[MEASURE.key] = measure_as_json(results)
    print_tables(written[MEASURE.key])
    write(path, written)
    broken = results.broken_promises()
    for promise in broken:
        click.echo(f"benchmark: it never may, and has: {promise}", err=True)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
