"""Whether what a peer sends gets through: what proves it, and what proves nothing."""

from __future__ import annotations

import pytest

from gevent_mesh.protocol.hearing import Hearing


@pytest.fixture
def hearing() -> Hearing:
    """Of a peer whose first heartbeat has come."""
    hearing = Hearing()
    hearing.begin()
    assert not hearing.heartbeat(10, 0, 0.0)
    return hearing


def test_messages_that_no_service_acts_on_are_deafness_at_the_next_heartbeat(hearing: Hearing) -> None:
    assert hearing.heartbeat(11, 0, 5.0)
    assert hearing.deaf_since == 5.0


def test_one_message_that_is_acted_on_is_enough(hearing: Hearing) -> None:
    hearing.acted()
    assert not hearing.heartbeat(500, 0, 5.0)
    assert hearing.heartbeat(501, 0, 10.0)


def test_a_peer_that_sends_nothing_is_not_unheard(hearing: Hearing) -> None:
    assert not hearing.heartbeat(10, 0, 5.0)
    assert hearing.deaf_since is None


def test_what_was_dropped_for_its_shape_proves_nothing(hearing: Hearing) -> None:
    assert not hearing.heartbeat(13, 3, 5.0)
    assert hearing.heartbeat(14, 3, 10.0)


def test_deafness_ends_with_the_first_message_that_gets_through(hearing: Hearing) -> None:
    assert hearing.heartbeat(11, 0, 5.0)
    assert hearing.heartbeat(12, 0, 10.0)
    assert hearing.deaf_since == 5.0
    hearing.acted()
    assert hearing.deaf_since is None


def test_a_new_link_is_judged_from_its_first_heartbeat_on(hearing: Hearing) -> None:
    assert hearing.heartbeat(11, 2, 5.0) is False
    assert hearing.heartbeat(12, 2, 6.0)
    hearing.begin()
    # Numbers that were given up for lost while there was no link were never sent.
    assert not hearing.heartbeat(5000, 0, 20.0)
    assert hearing.deaf_since == 6.0
    assert hearing.heartbeat(5001, 0, 25.0)


def test_a_stream_that_begins_anew_is_no_proof(hearing: Hearing) -> None:
    assert not hearing.heartbeat(0, 0, 5.0)
    assert hearing.heartbeat(1, 0, 10.0)
