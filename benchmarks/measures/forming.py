"""Nodes that start at once: how soon each pair is linked, what they say to discovery, and what idling costs.

The nodes live in at most ten processes, so 100 of them are ten to a process: each is a whole node with sockets of its
own, but they share an interpreter and an event loop. That favours the memory and the start (not measured here), and
is no matter for links and bytes: each pair has its link over the loopback interface, in a process or not.

Time is from the first process's start of its nodes to the moment when the last node has all its links, with the cost
of 4,950 handshakes for 100 nodes on the cores of one machine in it. Bytes are what the kernel says of each open
connection: of those to discovery in both directions, of links at each end what it has sent. Links carry handshakes,
heartbeats and gossip. Idle is the time after that without events or clients, with heartbeats every five seconds.
"""

from __future__ import annotations

import json
import signal
from typing import Any

from ..children import Child, children, python
from ..contenders import CONTENDERS
from ..measuring import Kind, Measure, Sample

__all__ = ["MEASURE"]

PROCESSES = 10
START_SECONDS = 30.0
WHOLE_SECONDS = 120.0
SETTLE_SECONDS = 12.0
IDLE_SECONDS = 10.0
QUICK_SETTLE_SECONDS, QUICK_IDLE_SECONDS = 1.0, 5.0


def _sample(contender: str, nodes: int, quick: bool) -> Sample:
    settle, idle = (QUICK_SETTLE_SECONDS, QUICK_IDLE_SECONDS) if quick else (SETTLE_SECONDS, IDLE_SECONDS)
    with children() as started:
        service, url = CONTENDERS[contender].start_service(started)
        command = python("benchmarks.crew", url, str(nodes // PROCESSES), str(nodes - 1), str(settle), str(idle))
        crews = [started.start(f"crew {number + 1}", command) for number in range(PROCESSES)]
        for crew in crews:
            crew.line("ready", START_SECONDS)
        before = service.cpu_seconds()
        for crew in crews:
            crew.signal(signal.SIGUSR1)
        joined = [_facts(crew, "whole", WHOLE_SECONDS) for crew in crews]
        service_seconds = service.cpu_seconds() - before
        idled = [_facts(crew, "idle", settle + idle + START_SECONDS) for crew in crews]
    return {
        "whole_seconds": max(each["whole"] for each in joined) - min(each["began"] for each in joined),
        "roster_mb": _total(joined, "roster_bytes") / 1e6,
        "link_mb": _total(joined, "link_bytes") / 1e6,
        "gossip_mb": _total(joined, "gossip_bytes") / 1e6,
        "gossip_messages": _total(joined, "messages"),
        "discovery_cpu_seconds": service_seconds,
        "idle_cpu_percent": _total(idled, "cpu_seconds") * 100 / idle / nodes,
        "idle_bytes_per_second": _total(idled, "link_bytes") / idle / nodes,
        "idle_gossip_per_second": _total(idled, "gossip_bytes") / idle / nodes,
    }


def _facts(crew: Child, word: str, seconds: float) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(crew.line(f"^{word} (.*)", seconds)[1])
    return facts


def _total(facts: list[dict[str, Any]], name: str) -> float:
    return float(sum(each[name] for each in facts))


MEASURE = Measure(
    key="forming",
    title="Nodes that start at once, and then have nothing to do",
    unit="nodes",
    points=(10, 100),
    quick_points=(10,),
    contenders={"mesh": CONTENDERS["mesh"].name},
    kinds={
        "whole_seconds": Kind("seconds until each pair is linked", 2),
        "roster_mb": Kind("roster traffic of all nodes until then, MB", 3),
        "link_mb": Kind("bytes on links until then (handshakes, heartbeats, gossip), MB", 3),
        "gossip_mb": Kind("gossip in that, MB", 3),
        "gossip_messages": Kind("messages of gossip", 0),
        "discovery_cpu_seconds": Kind("CPU seconds of discovery until then", 2),
        "idle_cpu_percent": Kind("idle: CPU of each node, % of a core", 3),
        "idle_bytes_per_second": Kind("idle: bytes/s that each node sends", 0),
        "idle_gossip_per_second": Kind("idle: bytes/s of gossip in that", 0),
    },
    sample=_sample,
)
