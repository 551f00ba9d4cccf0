"""One event to all clients of a node, beside a bare loop of `socket.send` over the same connections.

A sample is one server process and one process that holds all its clients:

- **CPU time per delivery**: user and system time of the server process. The events are spaced, one each 80 us for a
  client and not closer than 50 ms: in bursts python-engineio would send several in one go.
- **The bare loop**: in the same process, with the same frame, at the same pace. It is what the kernel takes for it.
- **Garbage** is collected before each part, and what is there is left out of collections from then on (as in `churn`):
  a full one takes longer than many events, and would land in whichever part comes next. `memory` says what it takes.
- **Time until the last client has it**, and **how long the hub was held**, of events that are not counted above: to
  look every millisecond costs something itself.
"""

from __future__ import annotations

import statistics

from ..children import BenchmarkError
from ..local import CONTENDERS, Host, Swarm, one_node
from ..measuring import Kind, Measure, Sample, percentile

__all__ = ["MEASURE"]

PAUSE_SECONDS_EACH = 80e-6
MIN_PAUSE_SECONDS = 0.05
WARM_DELIVERIES = 20_000
"""Before anything is counted: buffers in the kernel grow with the first of them."""
DELIVERIES, QUICK_DELIVERIES = 60_000, 20_000
WATCHED_EVENTS = 5
AWAIT_SECONDS = 60.0


def _sample(contender: str, clients: int, quick: bool) -> Sample:
    events = max(WATCHED_EVENTS, (QUICK_DELIVERIES if quick else DELIVERIES) // clients)
    pause = max(MIN_PAUSE_SECONDS, clients * PAUSE_SECONDS_EACH)
    with one_node(contender) as (host, swarm):
        swarm.connect(host.port, clients - 1)
        host.settle(clients, AWAIT_SECONDS)
        host.ask("freeze")
        _emit(host, swarm, max(1, WARM_DELIVERIES // clients), pause)
        used = _cost(host, swarm, events, pause, "emit")
        bare = _cost(host, swarm, events, pause, "bare")
        swarm.tally().check()
        host.ask("freeze")
        host.ask("watch")
        _emit(host, swarm, WATCHED_EVENTS, pause)
        held_ms = float(host.ask("watched"))
        tally = swarm.tally()
        tally.check()
    cpu_us, bare_us = used * 1e6 / events / clients, bare * 1e6 / events / clients
    delays = [sorted(delays) for delays in tally.delays_ms.values()]
    return {
        "cpu_us": cpu_us,
        "bare_us": bare_us,
        "times_bare": cpu_us / bare_us,
        "p50_ms": statistics.median(percentile(delay, 0.5) for delay in delays),
        "last_ms": statistics.median(delay[-1] for delay in delays),
        "hub_ms": held_ms,
    }


def _emit(host: Host, swarm: Swarm, events: int, pause: float, how: str = "emit") -> None:
    """Emit, and wait until everybody has had all of it."""
    last = host.ask(how, events * pause + AWAIT_SECONDS, events=events, pause=pause)
    swarm.tell("await", last)
    try:
        swarm.hear("has", AWAIT_SECONDS)
    except BenchmarkError as error:
        raise BenchmarkError(f"event {last} did not reach all clients: {error}") from None


def _cost(host: Host, swarm: Swarm, events: int, pause: float, how: str) -> float:
    """CPU seconds of the server."""
    host.ask("freeze")
    before = host.cpu_seconds()
    _emit(host, swarm, events, pause, how)
    return host.cpu_seconds() - before


MEASURE = Measure(
    key="fanout",
    title="One event to all clients of a node",
    unit="clients",
    points=(1_000, 5_000, 10_000),
    quick_points=(1_000,),
    contenders=CONTENDERS,
    kinds={
        "cpu_us": Kind("CPU µs/delivery", 2),
        "bare_us": Kind("bare loop of socket.send, CPU µs/delivery", 2, more_is_better=None),
        "times_bare": Kind("times the bare loop", 2),
        "p50_ms": Kind("until half of the clients have it, ms", 1),
        "last_ms": Kind("until the last client has it, ms", 1),
        "hub_ms": Kind("longest time that the hub was held, wall time, ms", 1),
    },
    sample=_sample,
)
