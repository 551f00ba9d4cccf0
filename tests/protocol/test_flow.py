"""Patience: waiting spends it, bytes that are taken earn it back."""

from __future__ import annotations

import pytest

from gevent_mesh.protocol.flow import Patience


def test_a_fresh_peer_is_waited_for() -> None:
    assert Patience().is_left


def test_a_peer_that_takes_nothing_is_waited_for_once() -> None:
    patience = Patience(seconds=1.0)
    patience.spend(10.0, 10.75)
    assert patience.is_left
    patience.earn(0)
    patience.spend(10.75, 11.0)
    patience.earn(0)
    assert not patience.is_left


def test_a_second_costs_a_second_however_many_wait() -> None:
    patience = Patience(seconds=1.0)
    for _ in range(200):
        patience.spend(10.0, 10.5)
        patience.spend(10.25, 10.75)
    assert patience.is_left
    patience.spend(10.0, 11.0)
    assert not patience.is_left


def test_taken_bytes_earn_time_at_the_pace() -> None:
    patience = Patience(seconds=1.0, bytes_per_second=1000)
    patience.spend(0.0, 2.0)
    patience.earn(1000)
    assert not patience.is_left
    patience.earn(1001)
    assert patience.is_left


def test_the_same_bytes_earn_once() -> None:
    patience = Patience(seconds=1.0, bytes_per_second=1000)
    patience.earn(5000)
    patience.spend(0.0, 1.0)
    for _ in range(10):
        patience.earn(5000)
    assert not patience.is_left


def test_a_new_count_costs_nothing_and_earns_from_there() -> None:
    patience = Patience(seconds=1.0, bytes_per_second=1000)
    patience.earn(5000)
    patience.spend(0.0, 1.0)
    patience.earn(0)
    assert not patience.is_left
    patience.earn(10)
    assert patience.is_left


def test_patience_cannot_be_saved_up() -> None:
    patience = Patience(seconds=1.0, bytes_per_second=1000)
    patience.earn(1_000_000)
    patience.spend(0.0, 1.0)
    assert not patience.is_left


@pytest.mark.parametrize(("pace", "is_left"), [(1000, True), (999, False)])
def test_who_keeps_the_pace_is_waited_for_without_end(pace: int, is_left: bool) -> None:
    patience = Patience(seconds=0.25, bytes_per_second=1000)
    taken = 0
    for turn in range(10_000):
        patience.spend(turn * 0.125, (turn + 1) * 0.125)
        taken += pace // 8
        patience.earn(taken)
    assert patience.is_left is is_left
