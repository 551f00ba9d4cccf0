"""Nodes of one host, and nothing else: the one that serves discovery dies, or stands still."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable

import pytest

from tests.integration.clients import Client
from tests.integration.processes import FULL, Fleet, Node, linked
from tests.nemesis.faults import HEARTBEATS, counters, time_until, wait_for_numbers
from tests.nemesis.figures import Figures
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

RATE = 1000
NODES, DEATHS = (8, 6) if FULL else (4, 2)


def serving(nodes: Iterable[Node]) -> list[Node]:
    return [node for node in nodes if node.state()["serves_discovery"]]


def are_registered(nodes: Iterable[Node]) -> bool:
    return all(node.state()["discovery"] == [True] for node in nodes)


@pytest.mark.row(
    "kill -9 the node that serves embedded discovery",
    "another one within 3 s, a new node joins; no other link down, 0 lost among survivors",
)
def test_embedded_discovery_is_taken_over_when_its_node_is_killed(
    ships: Fleet, clients: list[Client], figures: Figures
) -> None:
    first = ships.nodes(NODES, None, **HEARTBEATS)
    linked(first)
    clients_of = {node.uid: Client(node.url) for node in first}
    clients += clients_of.values()
    for node in first:
        node.do("start_traffic", RATE / NODES)
    wait_for_numbers(clients, {node.boot: 20 for node in first})
    nodes = list(first)
    served, registered, joined = [], [], []
    for _ in range(DEATHS):
        (victim,) = serving(nodes)
        nodes.remove(victim)
        victim.kill()
        killed = time.monotonic()
        served.append(time_until(lambda: len(serving(nodes)) == 1, 10))
        eventually(lambda: are_registered(nodes), 10)
        registered.append(time.monotonic() - killed)
        new = ships.node(None, **HEARTBEATS)
        linked([*nodes, new])
        joined.append(time.monotonic() - new.ready_at)
        nodes.append(new)
    figures["deaths"] = DEATHS
    figures["another_serves_seconds"] = max(served)
    figures["all_registered_seconds"] = max(registered)
    figures["new_node_linked_seconds"] = max(joined)
    assert max(registered) < 3.0

    survivors = [node for node in first if node in nodes]
    sent = {node.boot: node.do("stop_traffic") for node in survivors}
    heard = [clients_of[node.uid] for node in survivors]
    wait_for_numbers(heard, sent)
    reports = [client.checker.report(sent) for client in heard]
    figures["lost"] = sum(report.missing for report in reports)
    # One for each that was killed.
    figures["other_links_down"] = sum(counters(node)["links_down"] - DEATHS for node in survivors)
    assert all(report.is_perfect for report in reports), reports
    assert figures["other_links_down"] == 0


@pytest.mark.skipif(not FULL, reason="waits for what takes five seconds to time out")
@pytest.mark.row(
    "SIGSTOP the node that serves embedded discovery", "no other link down; newcomers are in 3 s after it is killed"
)
def test_embedded_discovery_that_stands_still_ends_no_link(ships: Fleet, figures: Figures) -> None:
    """Its port is not free while it does."""
    nodes = ships.nodes(4, None, **HEARTBEATS)
    linked(nodes)
    (sleeper,) = serving(nodes)
    others = [node for node in nodes if node is not sleeper]
    sleeper.signal(signal.SIGSTOP)
    for node in others:
        eventually(lambda node=node: not node.considers_alive(sleeper), 30)  # type: ignore[misc]  # bound now
    newcomer = ships.node(None, **HEARTBEATS)
    newcomer.wait_for("no WebSocket connection within")
    sleeper.kill()
    killed = time.monotonic()
    linked([*others, newcomer])
    figures["newcomer_linked_after_kill_seconds"] = time.monotonic() - killed
    assert figures["newcomer_linked_after_kill_seconds"] < 3.0
    assert [counters(node)["links_down"] for node in others] == [1, 1, 1]
