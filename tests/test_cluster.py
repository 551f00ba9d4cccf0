"""Requests to the cluster: when they end, and that nothing is kept for ever."""

from __future__ import annotations

from time import monotonic
from typing import Any

from gevent_mesh.cluster import Requests


def opened(*nodes: str, timeout_seconds: float = 60.0) -> tuple[Requests, str, list[Any]]:
    """One open request, and the list that its answers go to."""
    requests, answers = Requests(timeout_seconds), []  # type: tuple[Requests, list[Any]]
    return requests, requests.expect(lambda *arguments: answers.append(arguments), nodes), answers


def answer(requests: Requests, request_id: str, *arguments: Any) -> bool:
    """A client acknowledges. Tells whether somebody waited for it."""
    run = requests.answered(request_id, list(arguments))
    if run is None:
        return False
    run()
    return True


def test_a_request_has_an_id_of_its_own() -> None:
    requests = Requests(1.0)
    ids = {requests.expect(print, ["a"]) for _ in range(100)}
    assert len(ids) == len(requests) == 100
    assert all(len(request_id) == 16 and int(request_id, 16) >= 0 for request_id in ids)


def test_every_answer_is_passed_on_with_its_arguments() -> None:
    requests, request_id, answers = opened("a")
    requests.counted(request_id, "a", 3)
    assert answer(requests, request_id)
    assert answer(requests, request_id, 1)
    assert answer(requests, request_id, 1, None, [2])
    assert answers == [(), (1,), (1, None, [2])]


def test_a_request_ends_when_all_that_were_promised_have_answered() -> None:
    requests, request_id, _ = opened("a", "b")
    requests.counted(request_id, "a", 1)
    requests.counted(request_id, "b", 2)
    for left in (1, 1, 0):
        assert answer(requests, request_id)
        assert len(requests) == left
    assert not answer(requests, request_id), "nobody waits any more"


def test_a_request_waits_for_nodes_that_have_not_counted_yet() -> None:
    requests, request_id, _ = opened("a", "b")
    requests.counted(request_id, "a", 1)
    assert answer(requests, request_id)
    assert len(requests) == 1
    requests.counted(request_id, "b", 0)
    assert len(requests) == 0


def test_answers_may_come_before_the_count() -> None:
    requests, request_id, answers = opened("a")
    assert answer(requests, request_id, 1)
    assert answer(requests, request_id, 2)
    requests.counted(request_id, "a", 2)
    assert len(requests) == 0
    assert answers == [(1,), (2,)]


def test_a_request_that_reaches_no_clients_ends_at_once() -> None:
    requests, request_id, answers = opened("a", "b")
    requests.counted(request_id, "a", 0)
    requests.counted(request_id, "b", 0)
    assert len(requests) == 0
    assert answers == []


def test_a_node_is_counted_once_and_strangers_never() -> None:
    requests, request_id, _ = opened("a", "b")
    requests.counted(request_id, "a", 1)
    requests.counted(request_id, "a", 5)
    requests.counted(request_id, "stranger", 5)
    requests.counted(request_id, "b", 0)
    assert answer(requests, request_id)
    assert len(requests) == 0


def test_unknown_requests_are_ignored() -> None:
    requests, _, answers = opened("a")
    requests.counted("0" * 16, "a", 1)
    assert not answer(requests, "0" * 16)
    assert (len(requests), answers) == (1, [])


def test_requests_do_not_mix() -> None:
    requests = Requests(60.0)
    ours: list[int] = []
    theirs: list[int] = []
    one, other = requests.expect(ours.append, ["a"]), requests.expect(theirs.append, ["a"])
    assert answer(requests, one, 1)
    requests.counted(one, "a", 1)
    assert answer(requests, other, 2)
    assert (ours, theirs, len(requests)) == ([1], [2], 1)


def test_a_request_is_freed_when_its_time_is_over() -> None:
    before = monotonic()
    requests, request_id, _ = opened("a", timeout_seconds=60.0)
    requests.sweep(before + 59.9)
    assert len(requests) == 1
    requests.sweep(monotonic() + 60.0)
    assert len(requests) == 0
    assert not answer(requests, request_id)


def test_a_callback_that_fails_does_not_keep_the_request() -> None:
    requests = Requests(60.0)
    request_id = requests.expect(lambda: 1 // 0, ["a"])
    requests.counted(request_id, "a", 1)
    run = requests.answered(request_id, [])
    assert len(requests) == 0, "it was over before the callback ran"
    assert run is not None
