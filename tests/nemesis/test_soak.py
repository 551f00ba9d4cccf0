"""Traffic, clients and nodes that come and go, and random faults, for as long as is wished: nothing may pile up.

``make soak MINUTES=30``; each round ends with the checker of the nemesis suite, and with a look at what the nodes hold.
"""

from __future__ import annotations

import os
import random
import statistics
import time

import pytest

from tests.integration.clients import Client
from tests.integration.processes import Fleet, linked
from tests.nemesis.faults import MIB, judge, lost
from tests.nemesis.figures import Figures
from tests.nemesis.schedule import Schedule

MINUTES = float(os.environ.get("MESH_SOAK_MINUTES", "0"))
ROUND_SECONDS = 20.0 if MINUTES else 1.5
LEAST_ROUNDS = 9 if MINUTES else 1
NODES, SPARED, CLIENTS = 5, 2, 4
OPTIONS = {"heartbeat_interval": 0.5, "heartbeat_timeout": 1.5, "resume_window": 10.0}
DRIFT = 0.02
PIECES = 2
"""Of some thirty descriptors or greenlets, one more or less is more than two percent, and no drift."""

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120 + MINUTES * 120)]

Sample = dict[str, int]


def churn(schedule: Schedule) -> None:
    """Clients come, talk and go: one half says so, the other half is just gone."""
    clients = [Client(node.url) for node in schedule.nodes for _ in range(CLIENTS)]
    for number, client in enumerate(clients):
        client.enter(f"room {number % 3}")
        client.io.emit("relay", ("said", number))
    for client in clients[::2]:
        client.close()
    for client in clients[1::2]:
        client.io.eio.ws.shutdown()


def drift(samples: list[Sample], what: str) -> float:
    """How much more there is in the last third of the samples than in the second one, as a fraction."""
    third = len(samples) // 3
    before = statistics.median(sample[what] for sample in samples[third : 2 * third])
    after = statistics.median(sample[what] for sample in samples[2 * third :])
    return 0.0 if abs(after - before) <= PIECES else after / before - 1


@pytest.mark.row(
    "soak: random faults, churn of clients and nodes", "0 violations; memory, descriptors, greenlets within 2 %"
)
def test_nothing_piles_up(ships: Fleet, figures: Figures) -> None:
    seed = int(os.environ.get("MESH_SEED", random.SystemRandom().randrange(10**6)))
    print(f"\n    MESH_SEED={seed} runs it again", end="")
    schedule = Schedule(random.Random(seed), ships, NODES, OPTIONS, spared=SPARED)
    linked(schedule.nodes, 20)
    ends_at = time.monotonic() + MINUTES * 60
    samples: list[list[Sample]] = [[] for _ in range(SPARED)]
    rounds = events_lost = 0
    while time.monotonic() < ends_at or rounds < LEAST_ROUNDS:
        rounds += 1
        schedule.start_traffic()
        churn(schedule)
        schedule.run(ROUND_SECONDS)
        schedule.repair()
        linked(schedule.nodes, 30)
        events_lost = lost(judge(schedule.nodes))
        for of_node, node in zip(samples, schedule.nodes, strict=False):
            of_node.append(node.do("resources"))
        print(f"\n    round {rounds}: {samples[0][-1]}", end="", flush=True)
    figures["rounds"], figures["faults"], figures["lost_and_counted"] = rounds, len(schedule.done), events_lost
    figures["memory_mib"] = samples[0][-1]["memory"] / MIB
    if rounds >= 9:
        for what in ("memory", "descriptors", "greenlets"):
            figures[f"{what}_drift"] = max(drift(of_node, what) for of_node in samples)
        for what in ("memory", "descriptors", "greenlets"):
            assert figures[f"{what}_drift"] <= DRIFT
