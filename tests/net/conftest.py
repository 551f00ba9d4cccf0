"""Nodes and a discovery server that are gone when the test is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from gevent_mesh_discovery import DiscoveryServer
from tests.net.nodes import Join, Member


@pytest.fixture
def join() -> Iterator[Join]:
    """Starts nodes, and stops them."""
    members: list[Member] = []

    def start(*args: Any, **options: Any) -> Member:
        members.append(Member(*args, **options))
        return members[-1]

    yield start
    for member in members:
        member.on_number = lambda _number: None
    gevent.joinall([gevent.spawn(member.mesh.stop, 0.2) for member in members], timeout=10)


@pytest.fixture
def discovery() -> Iterator[DiscoveryServer]:
    server = DiscoveryServer(port=0)
    server.start()
    yield server
    server.stop()
