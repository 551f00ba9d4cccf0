"""Requests: when they end, what is missing then, and that nothing is kept for ever."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent

from gevent_mesh.cluster.requests import Request, Requests


def opened(*asked: str, missing: tuple[str, ...] = (), seconds: float = 60.0, may_grow: bool = False) -> Any:
    """One open request whose parts are complete when ``"last"`` comes, and the list of what came."""
    came: list[tuple[str, str]] = []

    def take(uid: str, what: str) -> bool:
        came.append((uid, what))
        return what == "last"

    requests = Requests()
    request = Request(asked, missing, take, monotonic() + seconds, may_grow=may_grow)
    requests.open(request)
    return requests, request, came


def test_a_request_has_an_id_of_its_own() -> None:
    ids = {Request((), (), lambda *_: True, 0.0).id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(request_id) == 16 and int(request_id, 16) >= 0 for request_id in ids)


def test_a_request_ends_when_every_part_is_complete() -> None:
    requests, request, came = opened("a", "b")
    requests.take(request.id, "a", "last")
    requests.take(request.id, "b", "first")
    assert len(requests) == 1
    requests.take(request.id, "b", "last")
    assert len(requests) == 0
    assert came == [("a", "last"), ("b", "first"), ("b", "last")]
    assert (request.missing, request.expected_nodes) == (set(), 2)


def test_what_comes_behind_the_last_piece_is_ignored() -> None:
    requests, request, came = opened("a", "b")
    requests.take(request.id, "a", "last")
    requests.take(request.id, "a", "more")
    requests.take(request.id, "b", "last")
    requests.take(request.id, "b", "more")
    assert came == [("a", "last"), ("b", "last")]


def test_strangers_and_unknown_requests_are_ignored() -> None:
    requests, request, came = opened("a")
    requests.take(request.id, "stranger", "last")
    requests.take("0" * 16, "a", "last")
    assert (len(requests), came) == (1, [])


def test_a_node_that_lapses_ends_its_part_and_is_missing() -> None:
    requests, request, came = opened("a", "b")
    requests.take(request.id, "a", "first")
    requests.lapsed("a")
    requests.lapsed("a")
    requests.take(request.id, "a", "last")
    requests.take(request.id, "b", "last")
    assert len(requests) == 0
    assert request.missing == {"a"}
    assert came == [("a", "first"), ("b", "last")]


def test_a_node_that_lapses_after_its_part_is_not_missing() -> None:
    requests, request, _ = opened("a", "b")
    requests.take(request.id, "a", "last")
    requests.lapsed("a")
    requests.take(request.id, "b", "last")
    assert request.missing == set()


def test_nodes_that_cannot_be_reached_are_missing_and_not_waited_for() -> None:
    requests, request, _ = opened("a", missing=("b",))
    assert request.expected_nodes == 2
    requests.take(request.id, "a", "last")
    assert len(requests) == 0
    assert request.missing == {"b"}


def test_whoever_waits_is_told_of_the_end() -> None:
    requests, request, _ = opened("a")
    waiting = gevent.spawn(requests.wait, request)
    gevent.sleep(0)
    assert not waiting.dead
    requests.take(request.id, "a", "last")
    waiting.join(1)
    assert waiting.dead


def test_a_request_to_nobody_ends_at_once() -> None:
    requests, request, _ = opened(missing=("b",))
    requests.wait(request)
    assert len(requests) == 0
    assert request.missing == {"b"}


def test_a_request_ends_at_its_deadline_with_what_is_missing() -> None:
    requests, request, _ = opened("a", "b", seconds=0.02)
    requests.take(request.id, "a", "last")
    requests.wait(request)
    assert len(requests) == 0
    assert request.missing == {"b"}


def test_a_request_that_nobody_waits_for_is_freed_at_its_deadline() -> None:
    requests, request, came = opened("a", seconds=60.0)
    requests.sweep(monotonic() + 59.0)
    assert len(requests) == 1
    requests.sweep(monotonic() + 61.0)
    assert len(requests) == 0
    requests.take(request.id, "a", "last")
    assert came == []


def test_a_request_that_may_grow_takes_newcomers_and_ends_at_its_deadline_only() -> None:
    requests, request, came = opened("a", may_grow=True)
    requests.take(request.id, "a", "last")
    requests.take(request.id, "newcomer", "last")
    assert came == [("a", "last"), ("newcomer", "last")]
    assert len(requests) == 1
    requests.sweep(monotonic() + 61.0)
    assert len(requests) == 0
