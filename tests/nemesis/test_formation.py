"""Many nodes that start at once."""

from __future__ import annotations

import pytest

from tests.integration.processes import FULL, Fleet
from tests.nemesis.faults import MIB
from tests.nemesis.figures import Figures
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

PROCESSES, NODES_EACH = (10, 10) if FULL else (3, 4)


@pytest.mark.row("100 nodes start at once", "4,950 links within 10 s; roster traffic at most 2 MB")
def test_nodes_that_start_at_once_are_soon_a_whole_mesh(ships: Fleet, figures: Figures) -> None:
    nodes = PROCESSES * NODES_EACH
    discovery, proxy = ships.discovery(), ships.proxy()
    route = proxy.route()
    proxy.do("lead", route, discovery.port)
    crews = [ships.crew(NODES_EACH, f"ws://127.0.0.1:{route}") for _ in range(PROCESSES)]
    began = min(crew.do("start", nodes - 1) for crew in crews)
    eventually(lambda: all(crew.state()["whole_at"] for crew in crews), 60)
    states = [crew.state() for crew in crews]
    figures["links"] = sum(sum(state["links"]) for state in states) // 2
    figures["whole_seconds"] = max(state["whole_at"] for state in states) - began
    figures["cpu_seconds"] = sum(state["cpu_seconds"] for state in states)
    figures["roster_traffic_mb"] = proxy.state()["routes"][str(route)]["bytes"] / 1e6
    figures["rss_each_mib"] = max(state["rss"] for state in states) / MIB / NODES_EACH
    assert figures["links"] == nodes * (nodes - 1) // 2
    assert sum(state["links_down"] for state in states) == 0
    assert figures["roster_traffic_mb"] < 2.0
    assert figures["whole_seconds"] < 10.0
