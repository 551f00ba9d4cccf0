"""How a node leaves: who goes when, and how fast."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from time import monotonic
from typing import Any

import gevent
import pytest

from gevent_mesh.leaving import Leave
from tests.support import eventually


class Connection:
    """One client, whose disconnect handler takes its time."""

    def __init__(self, handler_seconds: float = 0.0) -> None:
        self.ended_at: float | None = None
        self.handled_at: float | None = None
        self._handler_seconds = handler_seconds

    def end(self) -> None:
        self.ended_at = monotonic()
        gevent.sleep(self._handler_seconds)
        self.handled_at = monotonic()


class Clients:
    """Those of a node; more may come once."""

    def __init__(self, connections: list[Connection], late: list[Connection] | None = None) -> None:
        self.all = list(connections)
        self._late = late or []

    def connections(self) -> list[Connection]:
        found = [connection for connection in self.all if connection.ended_at is None]
        if not found:
            self.all += self._late
            found, self._late = self._late, []
        return found

    def end_connection(self, connection: Connection) -> None:
        connection.end()


class Node:
    """One that takes part in a mesh, and notes when it leaves it."""

    uid = "0" * 16
    is_leaving = False
    stopped_at: float | None = None
    timeout: float | None = None

    def stop(self, timeout: float) -> bool:
        self.stopped_at, self.timeout = monotonic(), timeout
        return True


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def leave(node: Node) -> Callable[..., Leave]:
    def begin(clients: Clients, **options: Any) -> Leave:
        options = {"rate": 1000.0, "drain_seconds": 5.0, "flush_seconds": 2.0, **options}
        return Leave(node, clients, logger=logging.getLogger("gevent_mesh"), **options)  # type: ignore[arg-type]  # fakes

    return begin


def ends(clients: Clients) -> list[float]:
    found = [connection.ended_at for connection in clients.all if connection.ended_at is not None]
    assert len(found) == len(clients.all)
    return sorted(found)


def test_the_node_is_leaving_before_anything_else_happens(node: Node, leave: Callable[..., Leave]) -> None:
    clients = Clients([Connection()])
    leave(clients)
    assert node.is_leaving
    assert clients.all[0].ended_at is None


def test_clients_go_at_a_limited_rate_and_then_the_node(node: Node, leave: Callable[..., Leave]) -> None:
    clients = Clients([Connection() for _ in range(50)])
    began = monotonic()
    leave(clients, rate=200.0).wait()
    gone = ends(clients)
    # 50 clients at 200 in a second take a quarter of it; each pause is at least half of the average one.
    assert gone[-1] - began > 0.15
    assert all(later - sooner > 0.002 for sooner, later in pairwise(gone))
    assert node.stopped_at is not None
    assert node.stopped_at >= gone[-1]
    assert node.timeout == pytest.approx(2.0)


def test_the_rate_rises_where_clients_would_not_be_gone_in_time(leave: Callable[..., Leave]) -> None:
    clients = Clients([Connection() for _ in range(50)])
    began = monotonic()
    leave(clients, rate=1.0, drain_seconds=0.4).wait()
    gone = ends(clients)
    assert gone[-1] - began < 0.4
    # Not all at once either.
    assert gone[-1] - gone[0] > 0.2


def test_without_time_for_it_they_all_go_at_once(leave: Callable[..., Leave]) -> None:
    clients = Clients([Connection() for _ in range(50)])
    began = monotonic()
    leave(clients, rate=1.0, drain_seconds=0.0).wait()
    assert ends(clients)[-1] - began < 0.2


def test_who_has_less_time_hurries_it(node: Node, leave: Callable[..., Leave]) -> None:
    clients = Clients([Connection(0.01) for _ in range(50)])
    leaving = leave(clients, rate=0.1, drain_seconds=60.0)
    eventually(lambda: clients.all[0].ended_at)
    began = monotonic()
    leaving.wait(1.0)
    assert leaving.is_over
    assert 0.2 < monotonic() - began < 0.9
    assert all(connection.handled_at is not None for connection in clients.all)
    assert node.timeout is not None
    assert 0 < node.timeout <= 1.0


def test_disconnect_handlers_are_waited_for(node: Node, leave: Callable[..., Leave]) -> None:
    clients = Clients([Connection(0.2), Connection(0.1)])
    leave(clients).wait()
    assert node.stopped_at is not None
    assert all(connection.handled_at is not None for connection in clients.all)


def test_a_disconnect_handler_that_hangs_is_waited_for_until_the_deadline(
    node: Node, leave: Callable[..., Leave]
) -> None:
    began = monotonic()
    leave(Clients([Connection(60.0)]), drain_seconds=0.2).wait()
    assert node.stopped_at is not None
    assert 0.2 <= node.stopped_at - began < 0.6


def test_a_client_that_came_in_the_last_moment_goes_as_well(leave: Callable[..., Leave]) -> None:
    clients = Clients([Connection()], late=[Connection()])
    leave(clients).wait()
    assert len(ends(clients)) == 2


def test_a_failure_keeps_no_node_from_leaving(node: Node, leave: Callable[..., Leave], caplog: Any) -> None:
    leave(None).wait()
    assert node.stopped_at is not None
    assert "the node leaves all the same" in caplog.text
