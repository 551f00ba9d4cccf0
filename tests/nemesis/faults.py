"""What the tests of faults share: how fast heartbeats are, and what to read off a node."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.integration.clients import Client
from tests.integration.processes import FULL, Node
from tests.support import eventually

__all__ = ["HEARTBEATS", "MIB", "counters", "time_until", "wait_for_numbers"]

MIB = 1024 * 1024
HEARTBEATS: dict[str, Any] = {"heartbeat_interval": 0.5, "heartbeat_timeout": 1.5}
"""Those of a short run; the full one takes the defaults."""
if FULL:
    HEARTBEATS = {"heartbeat_interval": 5.0, "heartbeat_timeout": 10.0}


def wait_for_numbers(clients: list[Client], sent: dict[str, int], seconds: float = 15.0) -> None:
    """Wait until each client has the last number of each boot."""
    for client in clients:
        for boot, count in sent.items():
            client.wait_for_number(boot, count, seconds)


def time_until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for a condition; returns the seconds that it took."""
    began = time.monotonic()
    eventually(condition, seconds)
    return time.monotonic() - began


def counters(node: Node) -> dict[str, int]:
    found: dict[str, int] = node.state()["counters"]
    return found
