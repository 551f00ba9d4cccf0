"""One round: a contender's processes are started, its latency and its throughput measured, the processes ended."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .children import BenchmarkError, Child, Children, children, python
from .client import Tally
from .contenders import Contender

__all__ = ["Plan", "Round", "measure", "percentile", "steady_rate"]

START_SECONDS = 15.0
WARM_SECONDS = 15.0
WARM_PAUSE_SECONDS = 0.05
DRAIN_SECONDS = 120.0


@dataclass(frozen=True)
class Plan:
    """How long each part of a round takes.

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


@dataclass(frozen=True)
class Round:
    """What one round showed.

    Attributes:
        contender: its key.
        events_per_second: received by the client in the steady part of the loop.
        cpu_us_per_event: CPU time of all processes for one received event.
        cpu_us_by_process: the same, of each process.
        delays_ms: from emission to reception at an even pace, sorted.
        emitted: how many events the loop emitted.
        lost: how many of those, and of those at an even pace, never came.
        doubled: how many came again.
        late: how many came after a later one.
        drain_seconds: from the end of the loop to the last event.
    """

    contender: str
    events_per_second: float
    cpu_us_per_event: float
    cpu_us_by_process: dict[str, float]
    delays_ms: list[float]
    emitted: int
    lost: int
    doubled: int
    late: int
    drain_seconds: float


def measure(contender: Contender, plan: Plan) -> Round:
    """Run one round."""
    with children() as started:
        service, url = contender.start_service(started)
        emitter, emitter_port = _start_server(started, "emitting server", contender, url)
        receiver, receiver_port = _start_server(started, "receiving server", contender, url)
        bench = _Bench(started, emitter_port, receiver_port)

        paced, paced_tally = bench.run("delays", "pace", rate=plan.pace, seconds=plan.pace_seconds)
        counted = [service, emitter, receiver]
        flood, tally, used = bench.run_counting_cpu(counted, "flood", seconds=plan.flood_seconds)

    if not tally.received:
        raise BenchmarkError(f"{contender.name}: no event has reached the client")
    used["client"] = tally.cpu_seconds
    by_process = {name: seconds * 1e6 / tally.received for name, seconds in used.items()}
    steady_from = flood["began_ns"] + int(plan.run_in_seconds * 1e9)
    return Round(
        contender=contender.key,
        events_per_second=steady_rate(tally.samples, steady_from, flood["ended_ns"]),
        cpu_us_per_event=sum(by_process.values()),
        cpu_us_by_process=by_process,
        delays_ms=sorted(delay / 1e6 for delay in paced_tally.delays),
        emitted=flood["emitted"],
        lost=flood["emitted"] - tally.received + paced["emitted"] - paced_tally.received,
        doubled=tally.doubled + paced_tally.doubled,
        late=tally.late + paced_tally.late,
        drain_seconds=max(0.0, (_last_arrival(tally) - flood["ended_ns"]) / 1e9),
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


def _start_server(started: Children, name: str, contender: Contender, url: str) -> tuple[Child, int]:
    child = started.start(name, python("benchmarks.server", contender.key, url))
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


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
