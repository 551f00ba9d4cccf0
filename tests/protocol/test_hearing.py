"""Whether what a peer sends gets through: what proves it, and what proves nothing."""

from __future__ import annotations

import pytest

from gevent_mesh.protocol.hearing import Hearing


def heartbeat(
    hearing: Hearing, sent: int | None, now: float, *, dropped: int = 0, messages: int = 0, gets_through: bool = True
) -> bool:
    """A heartbeat comes, after messages of which so many were acted on."""
    for _ in range(messages):
        hearing.acted()
    hearing.heartbeat(sent, dropped)
    if gets_through:
        hearing.acted()
    return hearing.judge(now)


@pytest.fixture
def hearing() -> Hearing:
    """Of a peer whose first heartbeat has come."""
    hearing = Hearing()
    hearing.begin()
    assert not heartbeat(hearing, 10, 0.0)
    return hearing


def test_heartbeat_that_no_service_acts_on_is_deafness(hearing: Hearing) -> None:
    assert heartbeat(hearing, 10, 5.0, gets_through=False)
    assert hearing.deaf_since == 5.0


def test_heartbeat_is_judged_by_itself_whatever_came_before_it(hearing: Hearing) -> None:
    assert heartbeat(hearing, 500, 5.0, messages=490, gets_through=False)


def test_messages_that_no_service_acts_on_are_deafness_though_heartbeats_get_through(hearing: Hearing) -> None:
    assert heartbeat(hearing, 11, 5.0)
    assert heartbeat(hearing, 500, 10.0)
    assert hearing.deaf_since == 5.0


def test_one_message_that_is_acted_on_is_enough(hearing: Hearing) -> None:
    assert not heartbeat(hearing, 500, 5.0, messages=1)
    assert heartbeat(hearing, 501, 10.0)


def test_a_peer_that_sends_nothing_is_not_unheard(hearing: Hearing) -> None:
    assert not heartbeat(hearing, 10, 5.0)
    assert not heartbeat(hearing, 10, 10.0)
    assert hearing.deaf_since is None


def test_a_peer_that_does_not_count_is_judged_by_its_heartbeats(hearing: Hearing) -> None:
    assert not heartbeat(hearing, None, 5.0)
    assert not heartbeat(hearing, 500, 10.0)
    assert heartbeat(hearing, None, 15.0, gets_through=False)


def test_what_was_dropped_for_its_shape_proves_nothing(hearing: Hearing) -> None:
    assert not heartbeat(hearing, 13, 5.0, dropped=3)
    assert heartbeat(hearing, 14, 10.0, dropped=3)


def test_deafness_ends_with_a_heartbeat_that_finds_all_in_order(hearing: Hearing) -> None:
    assert heartbeat(hearing, 11, 5.0)
    assert not heartbeat(hearing, 12, 10.0, messages=1)
    assert hearing.deaf_since is None


def test_a_new_link_is_judged_from_its_first_heartbeat_on(hearing: Hearing) -> None:
    assert heartbeat(hearing, 12, 6.0)
    hearing.begin()
    # Numbers that were given up for lost while there was no link were never sent.
    assert not heartbeat(hearing, 5000, 20.0)
    assert hearing.deaf_since == 6.0
    assert heartbeat(hearing, 5001, 25.0)
    assert hearing.deaf_since == 6.0
    assert not heartbeat(hearing, 5002, 30.0, messages=1)
    assert hearing.deaf_since is None


def test_a_stream_that_begins_anew_is_no_proof(hearing: Hearing) -> None:
    assert not heartbeat(hearing, 0, 5.0)
    assert heartbeat(hearing, 1, 10.0)
