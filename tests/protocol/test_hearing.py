"""Whether what a peer sends gets through: what proves it, and what proves nothing."""

from __future__ import annotations

import pytest

from gevent_mesh.protocol.hearing import Hearing


def heartbeat(hearing: Hearing, now: float, *, messages: int = 0, acted: int = 0, gets_through: bool = True) -> bool:
    """A heartbeat comes, after so many messages, of which so many were acted on."""
    for _ in range(messages):
        hearing.came()
    for _ in range(acted):
        hearing.acted()
    hearing.heartbeat()
    if gets_through:
        hearing.acted()
    return hearing.judge(now)


@pytest.fixture
def hearing() -> Hearing:
    """Of a peer whose first heartbeat has come."""
    hearing = Hearing()
    hearing.begin()
    assert not heartbeat(hearing, 0.0)
    return hearing


def test_heartbeat_that_no_service_acts_on_is_deafness(hearing: Hearing) -> None:
    assert heartbeat(hearing, 5.0, gets_through=False)
    assert hearing.deaf_since == 5.0


def test_heartbeat_is_judged_by_itself_whatever_came_before_it(hearing: Hearing) -> None:
    assert heartbeat(hearing, 5.0, messages=490, acted=490, gets_through=False)


def test_messages_that_no_service_acts_on_are_deafness_though_heartbeats_get_through(hearing: Hearing) -> None:
    assert heartbeat(hearing, 5.0, messages=1)
    assert heartbeat(hearing, 10.0, messages=490)
    assert hearing.deaf_since == 5.0


def test_one_message_that_is_acted_on_is_enough(hearing: Hearing) -> None:
    assert not heartbeat(hearing, 5.0, messages=490, acted=1)
    assert heartbeat(hearing, 10.0, messages=1)


def test_a_peer_that_sends_nothing_is_not_unheard(hearing: Hearing) -> None:
    assert not heartbeat(hearing, 5.0)
    assert not heartbeat(hearing, 10.0)
    assert hearing.deaf_since is None


def test_deafness_ends_with_a_heartbeat_that_finds_all_in_order(hearing: Hearing) -> None:
    assert heartbeat(hearing, 5.0, messages=1)
    assert not heartbeat(hearing, 10.0, messages=1, acted=1)
    assert hearing.deaf_since is None


def test_deafness_does_not_end_with_the_first_heartbeat_of_a_new_link(hearing: Hearing) -> None:
    assert heartbeat(hearing, 6.0, messages=1)
    hearing.begin()
    # Nothing has been sent before it yet.
    assert not heartbeat(hearing, 20.0)
    assert heartbeat(hearing, 25.0, messages=1)
    assert hearing.deaf_since == 6.0
    assert not heartbeat(hearing, 30.0, messages=1, acted=1)
    assert hearing.deaf_since is None


def test_what_came_over_the_former_link_is_not_counted(hearing: Hearing) -> None:
    hearing.came()
    hearing.begin()
    assert not heartbeat(hearing, 5.0)
