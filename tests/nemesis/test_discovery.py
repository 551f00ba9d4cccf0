"""A discovery service that goes away."""

from __future__ import annotations

import time

import pytest

from tests.integration.processes import FULL, Fleet, linked
from tests.nemesis.faults import HEARTBEATS, counters
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

DISCOVERY_AWAY_SECONDS = 60.0 if FULL else 3.0


def say(text: str) -> None:
    print(f"\n    {text}", end="", flush=True)


@pytest.mark.row("discovery killed, restarted empty", "0 links down")
def test_discovery_may_go_and_come_back(ships: Fleet) -> None:
    discovery = ships.discovery()
    nodes = ships.nodes(5, discovery, **HEARTBEATS)
    linked(nodes)
    before = {node.uid: node.links() for node in nodes}
    discovery.kill()
    killed = time.monotonic()
    for node in nodes:
        eventually(lambda node=node: not any(node.state()["discovery"]))  # type: ignore[misc]  # bound now
    eventually(lambda: time.monotonic() > killed + DISCOVERY_AWAY_SECONDS, DISCOVERY_AWAY_SECONDS + 1)
    again = ships.discovery(port=discovery.port)
    restarted = time.monotonic()
    sixth = ships.node(again, **HEARTBEATS)
    linked([*nodes, sixth], 40)
    say(
        f"discovery was away for {restarted - killed:.1f} s; a sixth node was in the mesh "
        f"{time.monotonic() - restarted:.1f} s after its restart; links that went down: "
        f"{sum(counters(node)['links_down'] for node in nodes)}"
    )
    for node in nodes:
        assert counters(node)["links_down"] == 0
        assert node.links() == before[node.uid] | {sixth.uid}
        assert counters(node)["links_up"] == 5
