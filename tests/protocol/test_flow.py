"""Patience: waiting spends it, acknowledged bytes earn it back."""

from __future__ import annotations

import pytest

from gevent_mesh.protocol.flow import Patience


def test_a_fresh_peer_is_waited_for() -> None:
    assert Patience().is_left


def test_a_peer_that_acknowledges_nothing_is_waited_for_once() -> None:
    patience = Patience(seconds=1.0)
    patience.spend(0.75)
    assert patience.is_left
    patience.earn(0)
    patience.spend(0.25)
    patience.earn(0)
    assert not patience.is_left


def test_acknowledged_bytes_earn_time_at_the_pace() -> None:
    patience = Patience(seconds=1.0, bytes_per_second=1000)
    patience.spend(2.0)
    patience.earn(1000)
    assert not patience.is_left
    patience.earn(1001)
    assert patience.is_left


def test_the_same_bytes_earn_once() -> None:
    patience = Patience(seconds=1.0, bytes_per_second=1000)
    patience.earn(5000)
    patience.spend(1.0)
    for _ in range(10):
        patience.earn(5000)
    assert not patience.is_left


def test_patience_cannot_be_saved_up() -> None:
    patience = Patience(seconds=1.0, bytes_per_second=1000)
    patience.earn(1_000_000)
    patience.spend(1.0)
    assert not patience.is_left


@pytest.mark.parametrize(("pace", "is_left"), [(1000, True), (999, False)])
def test_who_keeps_the_pace_is_waited_for_without_end(pace: int, is_left: bool) -> None:
    patience = Patience(seconds=0.25, bytes_per_second=1000)
    acked = 0
    for _ in range(10_000):
        patience.spend(0.125)
        acked += pace // 8
        patience.earn(acked)
    assert patience.is_left is is_left
