"""What each link costs a node that has nothing to do.

A sample is a mesh of so many nodes without clients: one of them has a process for itself and is measured, the others
share three. **Memory** is what it holds with all its links, less what it held before the others came. **CPU** is that
of the links' beginning (handshakes, the roster), then that of a second with heartbeats only.
"""

from __future__ import annotations

import time

from ..children import BenchmarkError, children
from ..contenders import CONTENDERS
from ..local import START_SECONDS, Host
from ..measuring import Kind, Measure, Sample

__all__ = ["MEASURE"]

OTHER_PROCESSES = 3
FORM_SECONDS = 60.0
SETTLE_SECONDS, QUICK_SETTLE_SECONDS = 12.0, 0.5
IDLE_SECONDS, QUICK_IDLE_SECONDS = 20.0, 5.0


def _sample(contender: str, nodes: int, quick: bool) -> Sample:
    links = nodes - 1
    with children() as started:
        _, url = CONTENDERS[contender].start_service(started)
        host = Host(started, "node 1", "mesh", "--discovery", url)
        memory, cpu = host.resident_bytes(), host.cpu_seconds()
        for number in range(OTHER_PROCESSES):
            others = links * (number + 1) // OTHER_PROCESSES - links * number // OTHER_PROCESSES
            if others:
                companions = ("--companions", str(others - 1))
                Host(started, f"nodes of process {number + 2}", "mesh", "--discovery", url, *companions)
        _wait_for_links(host, links)
        begun = host.cpu_seconds() - cpu
        time.sleep(QUICK_SETTLE_SECONDS if quick else SETTLE_SECONDS)
        held = host.resident_bytes() - memory
        seconds = QUICK_IDLE_SECONDS if quick else IDLE_SECONDS
        cpu = host.cpu_seconds()
        time.sleep(seconds)
        idle = host.cpu_seconds() - cpu
    return {
        "link_kib": held / 1024 / links,
        "begin_us": begun * 1e6 / links,
        "idle_us": idle * 1e6 / seconds / links,
    }


def _wait_for_links(host: Host, links: int) -> None:
    deadline = time.monotonic() + FORM_SECONDS
    while (peers := host.ask("state", START_SECONDS)["peers"]) < links:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"after {FORM_SECONDS:.0f} s there were {peers} of {links} links")
        time.sleep(0.2)


MEASURE = Measure(
    key="links",
    title="Links without traffic",
    unit="nodes",
    points=(10, 100),
    quick_points=(10,),
    contenders={"mesh": CONTENDERS["mesh"].name},
    kinds={
        "link_kib": Kind("KiB/link, resident"),
        "begin_us": Kind("CPU µs/link to begin with", 0),
        "idle_us": Kind("CPU µs/link/s, idle"),
    },
    sample=_sample,
)
