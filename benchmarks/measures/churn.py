"""Clients that come and go, on a node that has many.

A sample is one server process, whose connect handler puts each client into three rooms (one of all, one of a hundred,
one of its own), and one process that holds the clients:

- **connect** and **disconnect**: CPU time of the server for each client of a batch, on top of the clients of the point;
  those that hang up are spread over all of them. The batches alternate. Python's garbage collector leaves out what
  was there before them: with many clients one full collection costs as much as hundreds of connects, and would be in
  one batch and not in the next. `memory` says what it takes.
- **the hub** while 10,000 clients (all, when there are fewer) hang up at once: the longest time that nothing else ran,
  and how long it took until they were gone.
"""

from __future__ import annotations

import statistics
import time

from ..children import BenchmarkError
from ..local import CONTENDERS, Host, Swarm, one_node
from ..measuring import Kind, Measure, Sample

__all__ = ["MEASURE"]

BATCH, QUICK_BATCH = 500, 200
BATCHES, QUICK_BATCHES = 4, 2
MASS = 10_000
SETTLE_SECONDS = 120.0


def _sample(contender: str, clients: int, quick: bool) -> Sample:
    batch, batches = (QUICK_BATCH, QUICK_BATCHES) if quick else (BATCH, BATCHES)
    with one_node(contender) as (host, swarm):
        swarm.connect(host.port, clients - 1)
        host.settle(clients, SETTLE_SECONDS)
        host.ask("freeze")
        costs = [_batch(host, swarm, clients, batch) for _ in range(batches)]
        held_ms, seconds = _mass(host, swarm, clients)
        tally = swarm.tally()
        if tally.dropped:
            raise BenchmarkError(f"the server dropped {tally.dropped} clients")
    return {
        "connect_us": statistics.median(connect for connect, _ in costs) * 1e6 / batch,
        "disconnect_us": statistics.median(disconnect for _, disconnect in costs) * 1e6 / batch,
        "mass_hub_ms": held_ms,
        "mass_seconds": seconds,
    }


def _batch(host: Host, swarm: Swarm, clients: int, batch: int) -> tuple[float, float]:
    """CPU seconds of the server for so many who come, and for so many who go."""
    before = host.cpu_seconds()
    swarm.connect(host.port, batch)
    host.settle(clients + batch, SETTLE_SECONDS)
    between = host.cpu_seconds()
    _close(swarm, batch)
    host.settle(clients, SETTLE_SECONDS)
    return between - before, host.cpu_seconds() - between


def _mass(host: Host, swarm: Swarm, clients: int) -> tuple[float, float]:
    """Milliseconds of the longest hold, and seconds until all are gone."""
    mass = min(MASS, clients)
    host.ask("collect")
    host.ask("watch")
    began = time.monotonic()
    _close(swarm, mass)
    host.settle(clients - mass, SETTLE_SECONDS)
    seconds = time.monotonic() - began
    return float(host.ask("watched")), seconds


def _close(swarm: Swarm, count: int) -> None:
    swarm.tell("close", count)
    swarm.hear("closed", SETTLE_SECONDS)


MEASURE = Measure(
    key="churn",
    title="Clients that come and go",
    unit="clients",
    points=(1_000, 15_000),
    quick_points=(1_000,),
    contenders={key: CONTENDERS[key] for key in ("mesh", "stock")},
    kinds={
        "connect_us": Kind("CPU µs/connect", 0),
        "disconnect_us": Kind("CPU µs/disconnect", 0),
        "mass_hub_ms": Kind("longest time that the hub was held while up to 10,000 hang up, wall time, ms", 1),
        "mass_seconds": Kind("until they were gone, s", 2),
    },
    sample=_sample,
)
