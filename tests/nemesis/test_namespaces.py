"""A cable that is pulled: what a network does that is really gone, not a proxy's idea of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.namespaces import Cable, NoNamespaces, cable, inside
from tests.integration.processes import FULL, Fleet, Node, linked
from tests.nemesis.faults import judge, lost, time_until, until
from tests.nemesis.figures import Figures

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

NODES = 5 if FULL else 1
"""On each of two hosts."""
TIMEOUT_SECONDS, PULLED_SECONDS = (10.0, 20.0) if FULL else (0.8, 1.5)
TOKEN = "a token for two hosts"


@pytest.fixture
def wire() -> Iterator[Cable]:
    try:
        with cable() as laid:
            yield laid
    except NoNamespaces as reason:
        pytest.skip(str(reason))


@pytest.mark.row("network namespaces: the cable pulled for 20 s", "0 lost; whole within 5 s")
def test_pulled_cable_loses_nothing(wire: Cable, ships: Fleet, figures: Figures) -> None:
    sides: list[list[Node]] = []
    for end, address in zip(wire.ends, wire.addresses, strict=True):
        with inside(end):
            if not sides:
                discovery = ships.discovery(host=address, token=TOKEN)
            options: dict[str, Any] = {
                "ws_host": address,
                "heartbeat_interval": TIMEOUT_SECONDS / 3,
                "heartbeat_timeout": TIMEOUT_SECONDS,
            }
            sides.append(ships.nodes(NODES, discovery, ear=True, auth_token=TOKEN, **options))
    nodes = [*sides[0], *sides[1]]
    linked(nodes)
    for node in nodes:
        node.do("start_traffic", 40)
    wire.pull()
    pulled = time.monotonic()
    figures["apart_seconds"] = time_until(
        lambda: all(len(node.links()) == NODES - 1 for node in nodes), TIMEOUT_SECONDS + 5
    )
    until(pulled + PULLED_SECONDS)
    wire.plug_in()
    plugged_in = time.monotonic()
    linked(nodes, 30)
    figures["whole_seconds"] = time.monotonic() - plugged_in
    figures["lost"] = lost(judge(nodes))
    assert figures["apart_seconds"] < TIMEOUT_SECONDS + 2
    assert figures["whole_seconds"] < 5
    assert figures["lost"] == 0
