"""Resident memory of a node for each client that does nothing, in three rooms (see `churn`).

What the process holds with all clients, less what it held with one, garbage collected both times. The kernel's buffers
of the sockets are not in it: they are the same for everybody. With it goes how long Python takes for a full garbage
collection when all of them are there. It does one by itself whenever a quarter more objects have come, and nothing else
runs meanwhile.
"""

from __future__ import annotations

from ..local import CONTENDERS, one_node
from ..measuring import Kind, Measure, Sample

__all__ = ["MEASURE"]

SETTLE_SECONDS = 60.0


def _sample(contender: str, clients: int, _quick: bool) -> Sample:
    with one_node(contender) as (host, swarm):
        before = host.resident_bytes()
        swarm.connect(host.port, clients - 1)
        host.settle(clients, SETTLE_SECONDS)
        held = host.resident_bytes() - before
        collection_ms = float(host.ask("collect"))
    return {"kib": held / 1024 / (clients - 1), "collection_ms": collection_ms}


MEASURE = Measure(
    key="memory",
    title="Memory of an idle client",
    unit="clients",
    points=(5_000, 10_000),
    quick_points=(1_000,),
    contenders={key: CONTENDERS[key] for key in ("mesh", "stock")},
    kinds={
        "kib": Kind("KiB/client, resident"),
        "collection_ms": Kind("a full garbage collection, ms", 0),
    },
    sample=_sample,
)
