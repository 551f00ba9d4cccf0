"""Events that go only to nodes with members of their rooms: nobody in one may miss anything, whatever happens."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest

from gevent_mesh.protocol.interest import LEASE_SECONDS
from tests.integration.clients import Client
from tests.integration.processes import FULL, Fleet, Node, linked
from tests.integration.roaming import withheld
from tests.nemesis.faults import counters, until
from tests.nemesis.figures import Figures
from tests.nemesis.schedule import Schedule
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

OPTIONS: dict[str, Any] = {
    "heartbeat_interval": 0.25,
    "heartbeat_timeout": 0.8,
    "resume_window": 120.0,
    "room_interest": True,
}
ROOMS, CLIENTS, RATE = 30, 5, 300
NODES = 6 if FULL else 4
FAULT_SECONDS = 40.0 if FULL else 4.0
GIVEN = os.environ.get("MESH_SEED")
SEEDS = [int(GIVEN)] if GIVEN else [random.SystemRandom().randrange(10**6) for _ in range(5 if FULL else 1)]


class Roam(Schedule):
    """Faults that no event is lost by."""

    def kill(self) -> None:
        self.reset()


def roam(nodes: Sequence[Node]) -> None:
    for node in nodes:
        node.do("roaming", "start", ROOMS, CLIENTS, RATE)


def judge(nodes: Sequence[Node], figures: Figures, gone: Sequence[dict[str, Any]] = ()) -> None:
    """Stop these nodes, and see that nothing was withheld; `gone` is what former ones have emitted."""
    for node in nodes:
        node.do("roaming", "stop")
    reports: list[dict[str, Any]] = []

    def is_right() -> bool:
        reports[:] = [node.do("roaming", "report") for node in nodes]
        wrong = withheld([*reports, *gone], reports)
        assert not wrong, "\n".join([f"{len(wrong)} events", *wrong[:10]])
        return True

    eventually(is_right, 20)
    figures["events"] = sum(len(report["events"]) for report in reports)
    figures["spared"] = sum(report["spared"] for report in reports)
    waits = sorted(wait for report in reports for wait in report["waits"])
    figures["enter_p50_seconds"], figures["enter_worst_seconds"] = waits[len(waits) // 2], waits[-1]
    assert figures["spared"] > 0


@pytest.mark.row("random faults, events only to nodes with members", "nothing withheld from a room with members")
@pytest.mark.parametrize("seed", SEEDS, ids=[f"seed {seed}" for seed in SEEDS])
def test_nobody_in_a_room_misses_anything_under_random_faults(seed: int, ships: Fleet, figures: Figures) -> None:
    print(f"\n    MESH_SEED={seed} runs it again", end="")
    schedule = Roam(random.Random(seed), ships, NODES, OPTIONS)
    linked(schedule.nodes, 20)
    roam(schedule.nodes)
    schedule.run(FAULT_SECONDS)
    schedule.repair()
    linked(schedule.nodes, 30)
    judge(schedule.nodes, figures)
    figures["faults"] = len(schedule.done)


@pytest.mark.row("rolling restart, events only to nodes with members", "nothing withheld from a room with members")
def test_nobody_in_a_room_misses_anything_while_nodes_are_replaced(ships: Fleet, figures: Figures) -> None:
    discovery = ships.discovery()
    nodes = ships.nodes(3, discovery, **OPTIONS)
    linked(nodes)
    roam(nodes)
    gone = []
    for _ in range(len(nodes)):
        until(time.monotonic() + 0.5)
        late = ships.node(discovery, **OPTIONS)
        linked([*nodes, late])
        roam([late])
        former = nodes.pop(0)
        former.do("roaming", "stop")
        gone.append(former.do("roaming", "report"))
        former.signal(signal.SIGTERM)
        former.wait(10)
        nodes.append(late)
    until(time.monotonic() + 0.5)
    judge(nodes, figures, gone)


@pytest.mark.row("a node that publishes stops, and a client enters a room", "delayed by one lease at the most")
def test_a_stopped_node_delays_who_enters_a_room_by_one_lease(
    ships: Fleet, clients: list[Client], figures: Figures
) -> None:
    nodes = ships.nodes(3, ships.discovery(), room_interest=True)
    linked(nodes)
    clients.append(Client(nodes[0].url))
    sid = clients[0].sid
    nodes[1].do("start_traffic", 200, room="red")
    eventually(lambda: counters(nodes[1])["events_spared"] > 0)
    nodes[1].signal(signal.SIGSTOP)
    began = time.monotonic()
    nodes[0].do("enter_room", sid, "red")
    figures["enter_seconds"] = time.monotonic() - began
    nodes[1].signal(signal.SIGCONT)
    assert figures["enter_seconds"] < LEASE_SECONDS + 0.3
    nodes[1].do("emit", "news", 1, room="red")
    clients[0].wait_for("news")


@pytest.mark.row("a client enters a room, all nodes publish", "a round trip")
@pytest.mark.parametrize("count", [3, 10] if FULL else [3])
def test_entering_a_room_takes_a_round_trip(count: int, ships: Fleet, figures: Figures) -> None:
    nodes = ships.nodes(count, ships.discovery(), room_interest=True)
    linked(nodes, 20)
    for node in nodes:
        node.do("roaming", "start", ROOMS, 2, 20)
    until(time.monotonic() + 3)
    judge(nodes, figures)
    assert figures["enter_p50_seconds"] < 0.1


@pytest.mark.row("an event to a sid; an event to a room", "one message to one node; none to nodes without members")
def test_events_cost_only_the_nodes_that_they_are_for(ships: Fleet, clients: list[Client], figures: Figures) -> None:
    nodes = ships.nodes(4, ships.discovery(), room_interest=True)
    linked(nodes)
    clients += [Client(nodes[1].url), Client(nodes[2].url)]
    sender, *others = nodes
    events = 100

    def received() -> list[int]:
        return [counters(node)["messages_received"] for node in others]

    def cost(**options: Any) -> list[int]:
        before = received()
        for _ in range(events):
            sender.do("emit", "news", 1, **options)
        eventually(lambda: not any(sender.state()["outbox"].values()))
        return [now - then for now, then in zip(received(), before, strict=True)]

    assert cost(to=clients[0].sid) == [events, 0, 0]
    nodes[1].do("enter_room", clients[0].sid, "red")
    cost(to="red")
    # A lease is renewed by a question about once a second.
    costs = cost(to="red")
    figures["to_members"], figures["to_others"] = costs[0], max(costs[1:])
    assert costs[0] >= events
    assert figures["to_others"] < events / 5
    assert counters(sender)["events_spared"] >= 2 * events
