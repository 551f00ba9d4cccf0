"""Discovery servers that go away, forget everything, know only a half, or are silent."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from tests.integration.clients import Client
from tests.integration.processes import FULL, Crew, Fleet, Node, linked
from tests.nemesis.faults import HEARTBEATS, counters, time_until, wait_for_numbers
from tests.nemesis.figures import Figures
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

NODES = 10 if FULL else 4
AWAY_SECONDS = 60.0 if FULL else 2.0
RATE = 50
PROCESSES, NODES_EACH = (10, 10) if FULL else (2, 5)


def pass_time(seconds: float) -> None:
    """A fault that lasts for a known time."""
    ends = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= ends, seconds + 5)


def are_registered(nodes: Sequence[Node]) -> bool:
    return all(all(node.state()["discovery"]) for node in nodes)


class Traffic:
    """Every node emits, and a client of every node counts."""

    def __init__(self, nodes: Sequence[Node], clients: list[Client]) -> None:
        self._nodes = nodes
        self._clients = [Client(node.url) for node in nodes]
        clients += self._clients
        for node in nodes:
            node.do("start_traffic", RATE)

    def assert_nothing_was_lost(self, figures: Figures) -> None:
        """Ends it."""
        sent = {node.boot: node.do("stop_traffic") for node in self._nodes}
        wait_for_numbers(self._clients, sent)
        reports = [client.checker.report(sent) for client in self._clients]
        for name, seen in (
            ("events", sum(report.received for report in reports)),
            ("lost", sum(report.missing for report in reports)),
            ("links_down", sum(counters(node)["links_down"] for node in self._nodes)),
        ):
            figures[name] = figures.get(name, 0) + seen
        assert all(report.is_perfect for report in reports), reports
        assert figures["links_down"] == 0


@pytest.mark.row("discovery killed for 60 s, restarted empty", "0 links down, 0 lost; registered again within 30 s")
def test_discovery_may_go_and_come_back(ships: Fleet, clients: list[Client], figures: Figures) -> None:
    discovery = ships.discovery()
    nodes = ships.nodes(NODES, discovery, log="WARNING", **HEARTBEATS)
    linked(nodes)
    traffic = Traffic(nodes, clients)
    discovery.kill()
    for node in nodes:
        eventually(lambda node=node: not any(node.state()["discovery"]))  # type: ignore[misc]  # bound now
    pass_time(AWAY_SECONDS)
    again = ships.discovery(port=discovery.port)
    restarted = time.monotonic()
    # It knows nobody yet: this one hears of the others from whoever is back first, and speaks before that.
    newcomer = ships.node(again, **HEARTBEATS)
    newcomer.do("emit", "first words", 1)
    linked([*nodes, newcomer], 40)
    figures["newcomer_linked_seconds"] = time.monotonic() - newcomer.ready_at
    eventually(lambda: are_registered(nodes), 30)
    figures["registered_again_seconds"] = time.monotonic() - restarted
    for client in clients:
        assert client.wait_for("first words") == [(1,)]
    traffic.assert_nothing_was_lost(figures)
    assert figures["registered_again_seconds"] < 30
    for node in nodes:
        assert counters(node)["links_up"] == NODES


@pytest.mark.row("discovery restarted empty under 100 nodes", "0 links down; registered again within 30 s")
def test_discovery_may_forget_a_hundred_nodes(ships: Fleet, figures: Figures) -> None:
    discovery = ships.discovery()
    crews = [ships.crew(NODES_EACH, discovery.url) for _ in range(PROCESSES)]
    peers = PROCESSES * NODES_EACH - 1
    for crew in crews:
        crew.do("start", peers)
    eventually(lambda: all(crew.state()["whole_at"] for crew in crews), 60)
    discovery.kill()
    eventually(lambda: registered(crews) == 0)
    again = ships.discovery(port=discovery.port)
    restarted = time.monotonic()
    newcomer = ships.node(again, log="WARNING")
    eventually(lambda: len(newcomer.links()) == peers + 1, 40)
    figures["newcomer_linked_seconds"] = time.monotonic() - newcomer.ready_at
    eventually(lambda: registered(crews) == peers + 1, 30)
    figures["registered_again_seconds"] = time.monotonic() - restarted
    figures["links_down"] = sum(crew.state()["links_down"] for crew in crews)
    assert figures["registered_again_seconds"] < 30
    assert figures["links_down"] == 0


def registered(crews: Sequence[Crew]) -> int:
    return sum(crew.state()["registered"] for crew in crews)


@pytest.mark.row("two discovery servers, each known to a half, one node in both", "whole within 35 s, 0 links down")
def test_halves_that_share_a_node_become_whole(ships: Fleet, clients: list[Client], figures: Figures) -> None:
    servers = [ships.discovery(), ships.discovery()]
    halves = [ships.nodes(NODES // 2, server, log="WARNING", **HEARTBEATS) for server in servers]
    for half in halves:
        linked(half)
    assert all(len(node.links()) == NODES // 2 - 1 for half in halves for node in half)
    traffic = [Traffic(half, clients) for half in halves]
    both = ships.node(None, url=[server.url for server in servers], **HEARTBEATS)
    nodes = [both, *halves[0], *halves[1]]
    linked(nodes, 35)
    figures["whole_seconds"] = time.monotonic() - both.ready_at
    for each in traffic:
        each.assert_nothing_was_lost(figures)
    assert figures["whole_seconds"] < 35


@pytest.mark.row("two discovery servers, each half reaches only one, repaired", "whole within 35 s, 0 links down")
def test_halves_that_reach_one_server_each_become_whole_when_they_reach_both(
    ships: Fleet, clients: list[Client], figures: Figures
) -> None:
    servers, proxy = [ships.discovery(), ships.discovery()], ships.proxy()
    # Where each half is told that the other server is: nobody there, until the network is repaired.
    routes = [proxy.route(), proxy.route()]
    halves = [
        ships.nodes(
            NODES // 2, None, url=[servers[own].url, f"ws://127.0.0.1:{routes[own]}"], log="WARNING", **HEARTBEATS
        )
        for own in (0, 1)
    ]
    for half in halves:
        linked(half)
    assert all(len(node.links()) == NODES // 2 - 1 for half in halves for node in half)
    traffic = [Traffic(half, clients) for half in halves]
    for own in (0, 1):
        proxy.do("lead", routes[own], servers[1 - own].port)
    repaired = time.monotonic()
    nodes = [*halves[0], *halves[1]]
    linked(nodes, 35)
    figures["whole_seconds"] = time.monotonic() - repaired
    eventually(lambda: are_registered(nodes), 30)
    figures["registered_seconds"] = time.monotonic() - repaired
    for each in traffic:
        each.assert_nothing_was_lost(figures)
    assert figures["whole_seconds"] < 35


@pytest.mark.row("half-open connections to discovery", "0 links down, 0 lost; registered again within 30 s")
def test_silent_connections_to_discovery_cost_nothing(ships: Fleet, clients: list[Client], figures: Figures) -> None:
    discovery, proxy = ships.discovery(), ships.proxy()
    route = proxy.route()
    proxy.do("lead", route, discovery.port)
    nodes = ships.nodes(NODES, None, url=f"ws://127.0.0.1:{route}", log="WARNING", **HEARTBEATS)
    linked(nodes)
    traffic = Traffic(nodes, clients)
    proxy.do("stall", route)
    if FULL:
        figures["noticed_seconds"] = time_until(lambda: not any(any(node.state()["discovery"]) for node in nodes), 30)
    else:
        # That takes them two pings, which is long for a short run: the network ends the connections instead.
        proxy.do("reset", route)
        eventually(lambda: not any(any(node.state()["discovery"]) for node in nodes))
    # Longer than a lease: the server takes them off its roster.
    pass_time(15.0 if FULL else 1.0)
    proxy.do("forward", route)
    figures["registered_again_seconds"] = time_until(lambda: are_registered(nodes), 30)
    late = ships.node(discovery, **HEARTBEATS)
    linked([*nodes, late], 10)
    traffic.assert_nothing_was_lost(figures)
