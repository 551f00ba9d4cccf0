"""Events between nodes: how many a second, at what cost, and how soon.

One WebSocket client, a process of its own, is connected to the second of the nodes; the first one emits to everybody.
A sample is

- **latency**: events at a rate that every contender carries, each with the time of its emission (the monotonic
  clock is one for all processes of a machine). How much of the pace was carried is a figure of its own: where it is
  less than 100 %, latency is that of a queue that grows;
- **throughput**: events emitted in a loop that does nothing else. What counts is what the client has *received* in the
  steady part of that time. A loop that outruns the rest is no merit: what it leaves behind is waited for, half a
  minute, and what has not arrived by then is reported as lost;
- **CPU time per event**: user and system time of all processes, the client and the broker included, from the first
  event of the loop to the last one received.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..children import BenchmarkError, Child, children
from ..client import Tally
from ..contenders import CONTENDERS
from ..measuring import Kind, Measure, Sample, Tail, percentile
from ..servers import Servers

__all__ = ["MEASURE", "carried_percent", "steady_rate"]

PUNCTUAL_NS = 1_000_000_000


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
    pace_seconds: float = 8.0


PLAN = Plan()
QUICK_PLAN = Plan(flood_seconds=1.5, run_in_seconds=0.5, pace_seconds=1.5)


def _sample(contender: str, nodes: int, quick: bool) -> Sample:
    plan = QUICK_PLAN if quick else PLAN
    with children() as started:
        servers = Servers(started, contender, nodes)
        client = servers.warm_client("delays")
        paced = servers.ask(0, "pace", rate=plan.pace, seconds=plan.pace_seconds)
        paced_tally = servers.tally(client)

        client = servers.warm_client("counts")
        before = _cpu_seconds(servers)
        flood = servers.ask(0, "flood", seconds=plan.flood_seconds)
        tally = servers.tally(client)
        used = {name: seconds - before[name] for name, seconds in _cpu_seconds(servers).items()}

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
        # A short time has too few events for it.
        **({} if quick else {"p999_ms": Tail(delays, 0.999)}),
        "carried_percent": carried_percent(paced_tally.delays, round(plan.pace * plan.pace_seconds)),
        "cpu_us_emitting": cost["node 1"],
        "cpu_us_receiving": cost["node 2"],
        "cpu_us_others": sum(cost[f"node {number}"] for number in range(3, nodes + 1)),
        "cpu_us_client": tally.cpu_seconds * 1e6 / tally.received,
        "cpu_us_service": cost[servers.service.name],
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
        "cpu_us": Kind("CPU µs/event, all processes"),
        "p50_ms": Kind(f"latency at {PLAN.pace} events/s, p50, ms", 2),
        "p99_ms": Kind(f"latency at {PLAN.pace} events/s, p99, ms", 2),
        "p999_ms": Kind(f"latency at {PLAN.pace} events/s, p99.9 of all rounds together, ms", 2),
        "carried_percent": Kind(f"of {PLAN.pace} events/s carried, %", more_is_better=None),
        "cpu_us_emitting": Kind("CPU µs/event, emitting node"),
        "cpu_us_receiving": Kind("CPU µs/event, receiving node"),
        "cpu_us_others": Kind("CPU µs/event, other nodes together"),
        "cpu_us_client": Kind("CPU µs/event, client"),
        "cpu_us_service": Kind("CPU µs/event, broker or discovery"),
        "lost": Kind("events lost", 0, never=True),
        "doubled": Kind("events doubled", 0, never=True),
        "late": Kind("events out of order", 0, never=True),
        "drain_seconds": Kind("from the loop's end to the last event, s", 2, more_is_better=None),
    },
    sample=_sample,
)


def _cpu_seconds(servers: Servers) -> dict[str, float]:
    counted: list[Child] = [servers.service, *servers.nodes]
    return {child.name: child.cpu_seconds() for child in counted}


def carried_percent(delays: Sequence[int], planned: int) -> float:
    """How many of the events that were planned came within a second of their emission."""
    return 100.0 * sum(delay < PUNCTUAL_NS for delay in delays) / planned


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
