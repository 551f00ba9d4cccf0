"""Processes that die, and processes that stand still and come back."""

from __future__ import annotations

import signal
import time

import pytest

from tests.integration.processes import FULL, Fleet, linked
from tests.nemesis.faults import HEARTBEATS, LATENCY_FLOOR_SECONDS, MIB, counters, judge, lost, p99, time_until, until
from tests.nemesis.figures import Figures
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

RATE = 1000
TIMEOUT_SECONDS = HEARTBEATS["heartbeat_timeout"]
MEASURED_SECONDS = 12.0 if FULL else 1.0


@pytest.mark.row("kill -9 one of 10", "others know within 1 s; 0 lost among survivors")
def test_killed_node_is_noticed_and_replaced_and_nobody_else_loses_anything(ships: Fleet, figures: Figures) -> None:
    discovery = ships.discovery()
    nodes = ships.nodes(10 if FULL else 4, discovery, ear=True, **HEARTBEATS)
    linked(nodes, 30)
    *survivors, victim = nodes
    for node in nodes:
        node.do("start_traffic", RATE / len(nodes))
    for node in survivors:
        eventually(lambda node=node: victim.boot in node.account().heard)  # type: ignore[misc]  # bound now
    victim.kill()
    figures["noticed_seconds"] = time_until(
        lambda: not any(node.considers_alive(victim) for node in survivors), TIMEOUT_SECONDS + 5
    )
    new = ships.node(discovery, ear=True, **HEARTBEATS)
    for node in survivors:
        eventually(lambda node=node: node.sees(new), 5)  # type: ignore[misc]  # bound now
    figures["joined_seconds"] = time.monotonic() - new.ready_at
    new.do("start_traffic", RATE / len(nodes))
    for node in survivors:
        eventually(lambda node=node: new.boot in node.account().heard)  # type: ignore[misc]  # bound now
    # What the victim had not sent is gone. What came of it came once and in order.
    figures["lost"] = lost(judge([*survivors, new]))
    assert figures["noticed_seconds"] < 1.0
    assert figures["joined_seconds"] < 2.0
    assert figures["lost"] == 0
    assert all(counters(node)["links_down"] == 1 for node in survivors)


@pytest.mark.row(
    "SIGSTOP, then SIGCONT",
    "dead after 10 to 12 s; the senders' memory at most +16 MiB; survivors' p99 at most doubled; 0 lost, 0 doubled",
)
def test_stopped_node_is_noticed_and_resumes_with_nothing_lost_or_doubled(ships: Fleet, figures: Figures) -> None:
    nodes = ships.nodes(4, ships.discovery(), ear=True, **HEARTBEATS)
    linked(nodes)
    sleeper, *others = nodes
    for node in nodes:
        node.do("start_traffic", 200, padding=1000)
    began = time.monotonic()
    until(began + MEASURED_SECONDS)
    figures["p99_before_seconds"] = p99(others, began, others)
    memory = [node.state()["rss"] for node in others]
    sleeper.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    eventually(lambda: not any(node.considers_alive(sleeper) for node in others), 30)
    figures["dead_seconds"] = time.monotonic() - stopped
    until(stopped + max(MEASURED_SECONDS, TIMEOUT_SECONDS + (4 if FULL else 1)))
    figures["p99_during_seconds"] = p99(others, stopped, others)
    grown = [node.state()["rss"] - before for node, before in zip(others, memory, strict=True)]
    figures["grown_mib"] = max(grown) / MIB
    sleeper.signal(signal.SIGCONT)
    figures["linked_again_seconds"] = time_until(lambda: all(node.sees(sleeper) for node in others), 20)
    figures["lost"] = lost(judge(nodes))
    assert figures["lost"] == 0
    assert TIMEOUT_SECONDS - 0.5 <= figures["dead_seconds"] <= TIMEOUT_SECONDS + 2.0
    assert figures["grown_mib"] <= 16
    assert figures["p99_during_seconds"] <= max(2 * figures["p99_before_seconds"], LATENCY_FLOOR_SECONDS)
    # Those that stood beside it never lost each other.
    assert all(counters(node)["links_down"] == 1 for node in others)
