"""Events between nodes: how many a second, at what cost, and how soon.

One WebSocket client, a process of its own, is connected to the second of the nodes; the first one emits. A sample is

- **latency**: events at an even pace, each carrying the time of its emission (the monotonic clock is one for all
  processes of a machine);
- **throughput**: events emitted in a loop that does nothing else. What counts is what the client has *received* in the
  steady part of that time. A loop that outruns the rest is no merit: what it leaves behind is waited for, and what
  never arrives is reported as lost;
- **CPU time per event**: user and system time of all processes, the client and the broker included, from the first
  event of the loop to the last one received.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..children import BenchmarkError, Child, Children, children, python
from ..client import Tally
from ..contenders import CONTENDERS
from ..measuring import Kind, Measure, Sample, percentile

__all__ = ["MEASURE", "steady_rate"]

START_SECONDS = 15.0
WARM_SECONDS = 15.0
WARM_PAUSE_SECONDS = 0.05
DRAIN_SECONDS = 120.0


@dataclass(frozen=True)
class Plan:
    """How long each part of a sample takes.

    Attributes:
        flood_seconds: how long the loop emits.
        run_in_seconds: the beginning of that, which does not count as steady.
        pace: events per second while latency is measured.
        pace_seconds: how long that takes.
    """

    flood_seconds: float = 5.0
    run_in_seconds: float = 1.0
    pace: int = 200
    pace_seconds: float = 5.0


QUICK_PLAN = Plan(flood_seconds=2.0, run_in_seconds=0.5, pace_seconds=2.0)


def _sample(contender: str, nodes: int, quick: bool) -> Sample:
    plan = QUICK_PLAN if quick else Plan()
    with children() as started:
        service, url = CONTENDERS[contender].start_service(started)
        servers = [_start_server(started, f"node {number + 1}", contender, url) for number in range(nodes)]
        bench = _Bench(started, emitter_port=servers[0][1], receiver_port=servers[1][1])

        paced, paced_tally = bench.run("delays", "pace", rate=plan.pace, seconds=plan.pace_seconds)
        counted = [service, *(child for child, _ in servers)]
        flood, tally, used = bench.run_counting_cpu(counted, "flood", seconds=plan.flood_seconds)

    if not (tally.received and paced_tally.received):
        raise BenchmarkError("no event has reached the client")
    delays = sorted(delay / 1e6 for delay in paced_tally.delays)
    cost = {name: seconds * 1e6 / tally.received for name, seconds in used.items()}
    steady_from = flood["began_ns"] + int(plan.run_in_seconds * 1e9)
    return {
        "events_per_second": steady_rate(tally.samples, steady_from, flood["ended_ns"]),
        "cpu_us": sum(cost.values()) + tally.cpu_seconds * 1e6 / tally.received,
        "p50_ms": percentile(delays, 0.5),
        "p99_ms": percentile(delays, 0.99),
        "p999_ms": percentile(delays, 0.999),
        "cpu_us_emitting": cost["node 1"],
        "cpu_us_receiving": cost["node 2"],
        "cpu_us_others": sum(cost[f"node {number}"] for number in range(3, nodes + 1)),
        "cpu_us_client": tally.cpu_seconds * 1e6 / tally.received,
        "cpu_us_service": cost[service.name],
        "lost": flood["emitted"] - tally.received + paced["emitted"] - paced_tally.received,
        "doubled": tally.doubled + paced_tally.doubled,
        "late": tally.late + paced_tally.late,
        "drain_seconds": max(0.0, (_last_arrival(tally) - flood["ended_ns"]) / 1e9),
    }


MEASURE = Measure(
    key="cluster",
    title="Events from one node to a client of another",
    unit="nodes",
    points=(2, 5, 10),
    quick_points=(2,),
    contenders={key: contender.name for key, contender in CONTENDERS.items()},
    kinds={
        "events_per_second": Kind("events/s received", 0, more_is_better=True),
        "cpu_us": Kind("CPU us/event, all processes"),
        "p50_ms": Kind("latency p50, ms", 2),
        "p99_ms": Kind("latency p99, ms", 2),
        "p999_ms": Kind("latency p99.9, ms", 2),
        "cpu_us_emitting": Kind("CPU us/event, emitting node"),
        "cpu_us_receiving": Kind("CPU us/event, receiving node"),
        "cpu_us_others": Kind("CPU us/event, other nodes together"),
        "cpu_us_client": Kind("CPU us/event, client"),
        "cpu_us_service": Kind("CPU us/event, broker or discovery"),
        "lost": Kind("events lost", 0, never=True),
        "doubled": Kind("events doubled", 0, never=True),
        "late": Kind("events out of order", 0, never=True),
        "drain_seconds": Kind("from the loop's end to the last event, s", 2, more_is_better=None),
    },
    sample=_sample,
)


class _Bench:
    """The servers are up; each run has a client of its own."""

    def __init__(self, started: Children, emitter_port: int, receiver_port: int) -> None:
        self._started = started
        self._emitter_port = emitter_port
        self._receiver_port = receiver_port

    def run_counting_cpu(
        self, counted: Sequence[Child], action: str, **query: float
    ) -> tuple[dict[str, int], Tally, dict[str, float]]:
        """Like `run`; also the CPU seconds that the processes have spent on it."""
        client = self._warm_client("counts")
        before = {child.name: child.cpu_seconds() for child in counted}
        emitted = self._ask(action, **query)
        tally = self._tally(client)
        return emitted, tally, {child.name: child.cpu_seconds() - before[child.name] for child in counted}

    def run(self, mode: str, action: str, **query: float) -> tuple[dict[str, int], Tally]:
        """Have the first server emit, and count what comes from the second."""
        client = self._warm_client(mode)
        return self._ask(action, **query), self._tally(client)

    def _warm_client(self, mode: str) -> Child:
        """A client that is known to get what the first server emits: subscriptions and links are up."""
        client = self._started.start("client", python("benchmarks.client", str(self._receiver_port), mode))
        client.line("connected", START_SECONDS)
        deadline = time.monotonic() + WARM_SECONDS
        while True:
            self._ask("warm")
            try:
                client.line("warm", WARM_PAUSE_SECONDS)
            except BenchmarkError:
                if time.monotonic() > deadline:
                    raise
            else:
                return client

    def _tally(self, client: Child) -> Tally:
        return Tally(**json.loads(client.line(r"^\{", DRAIN_SECONDS).string))

    def _ask(self, action: str, **query: float) -> Any:
        words = "&".join(f"{name}={value}" for name, value in query.items())
        url = f"http://127.0.0.1:{self._emitter_port}/{action}?{words}"
        with urllib.request.urlopen(url, timeout=query.get("seconds", 0.0) + START_SECONDS) as response:
            return json.load(response)


def _start_server(started: Children, name: str, contender: str, url: str) -> tuple[Child, int]:
    child = started.start(name, python("benchmarks.server", contender, url))
    return child, int(child.line(r"listening on (\d+)", START_SECONDS)[1])


def _last_arrival(tally: Tally) -> int:
    return next(at for at, received in tally.samples if received == tally.received)


def steady_rate(samples: Sequence[tuple[int, int]], from_ns: int, to_ns: int) -> float:
    """Events per second between two times, out of samples (time, count so far)."""
    return (_count_at(samples, to_ns) - _count_at(samples, from_ns)) * 1e9 / (to_ns - from_ns)


def _count_at(samples: Sequence[tuple[int, int]], at_ns: int) -> float:
    """The count at a time, on the straight line between the samples before and after it."""
    before = (samples[0][0], 0)
    for sample in samples:
        if sample[0] >= at_ns:
            span = sample[0] - before[0]
            share = (at_ns - before[0]) / span if span else 0.0
            return before[1] + max(0.0, share) * (sample[1] - before[1])
        before = (sample[0], sample[1])
    return before[1]
