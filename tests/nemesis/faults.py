"""What the tests of faults share: how fast heartbeats are, and what to read off a node."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.integration.checker import Account, violations
from tests.integration.clients import Client
from tests.integration.processes import FULL, Node
from tests.support import eventually

__all__ = [
    "HEARTBEATS",
    "LATENCY_FLOOR_SECONDS",
    "MIB",
    "counters",
    "judge",
    "lost",
    "p99",
    "time_until",
    "until",
    "wait_for_numbers",
]

MIB = 1024 * 1024
HEARTBEATS: dict[str, Any] = {"heartbeat_interval": 0.5, "heartbeat_timeout": 1.5}
"""Those of a short run; the full one takes the defaults."""
if FULL:
    HEARTBEATS = {"heartbeat_interval": 5.0, "heartbeat_timeout": 10.0}

LATENCY_FLOOR_SECONDS = 0.02
"""What a busy machine does to the slowest hundredth of events at any time, faults or not."""


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


def until(moment: float) -> None:
    """Wait for a moment of the monotonic clock: a fault that lasts for a known time."""
    eventually(lambda: time.monotonic() >= moment, max(0.0, moment - time.monotonic()) + 5)


def judge(nodes: Sequence[Node], seconds: float = 30.0) -> list[Account]:
    """Stop the traffic of these nodes, wait until all is quiet between them, and hold them to what is promised.

    Returns:
        Their accounts.
    """
    for node in nodes:
        node.do("stop_traffic")
    accounts: list[Account] = []

    def quiet() -> bool:
        accounts[:] = [node.account() for node in nodes]
        wrong = violations(accounts)
        assert not wrong, "\n".join(wrong)
        return True

    eventually(quiet, seconds)
    return accounts


def lost(accounts: Sequence[Account]) -> int:
    """How many messages all of them together declare lost."""
    return sum(session.received_lost for account in accounts for session in account.sessions.values())


def p99(nodes: Sequence[Node], since: float, senders: Sequence[Node]) -> float:
    """The 99th percentile of the seconds that events of some nodes took to others: that of the slowest receiver."""
    figures: list[float] = [
        node.do("latency", since, [sender.boot for sender in senders if sender is not node])["p99"] for node in nodes
    ]
    return max(figures)


def counters(node: Node) -> dict[str, int]:
    found: dict[str, int] = node.state()["counters"]
    return found
