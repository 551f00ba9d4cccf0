from __future__ import annotations

from typing import Any

from benchmarks.wire import Audience, Member

SECOND = 1_000_000_000


def audience_of(*had: tuple[Member, list[int]]) -> Audience:
    """Event n was emitted at second n, and came half a second later."""
    audience = Audience()
    for member, numbers in had:
        for number in numbers:
            audience.add(member, number, number * SECOND, number * SECOND + SECOND // 2)
    return audience


def wrong(tally: dict[str, Any]) -> tuple[int, int]:
    return tally["lost"], tally["doubled"]


def test_everybody_had_everything() -> None:
    one, other = Member(-1), Member(-1)
    audience = audience_of((one, [0, 1]), (other, [0, 1]))
    assert audience.have(1, 2)
    assert audience.all_have(1, [one, other])
    tally = audience.tally([one, other])
    assert wrong(tally) == (0, 0)
    assert tally["delays_us"] == {0: [500_000, 500_000], 1: [500_000, 500_000]}


def test_a_gap_is_a_loss() -> None:
    one, other = Member(-1), Member(-1)
    audience = audience_of((one, [0, 1, 2]), (other, [0, 2]))
    assert wrong(audience.tally([one, other])) == (1, 0)


def test_what_has_not_come_at_the_end_is_a_loss_once() -> None:
    one, other = Member(-1), Member(-1)
    audience = audience_of((one, [0, 1, 2]), (other, [0]))
    assert not audience.all_have(2, [one, other])
    assert wrong(audience.tally([one, other])) == (2, 0)
    assert wrong(audience.tally([one, other])) == (0, 0)


def test_what_nobody_had_is_a_loss_of_whoever_had_one_before() -> None:
    one, new = Member(-1), Member(2 * SECOND + 1)
    audience = audience_of((one, [0, 1, 3]), (new, [3]))
    assert wrong(audience.tally([one, new])) == (1, 0)


def test_who_came_later_has_lost_nothing() -> None:
    one, new = Member(-1), Member(1 * SECOND)
    audience = audience_of((one, [0, 1, 2]), (new, [2]))
    assert audience.all_have(1, [one, new])
    assert wrong(audience.tally([one, new])) == (0, 0)


def test_who_came_just_before_has_lost_the_first() -> None:
    one, new = Member(-1), Member(SECOND // 2)
    audience = audience_of((one, [0, 1, 2]), (new, [2]))
    assert wrong(audience.tally([one, new])) == (1, 0)


def test_a_repeat_is_counted() -> None:
    one = Member(-1)
    assert wrong(audience_of((one, [0, 1, 1])).tally([one])) == (0, 1)


def test_an_event_for_some_is_nobodys_loss() -> None:
    one, other = Member(-1), Member(-1)
    audience = audience_of((one, [0, -1, 1]), (other, [0, 1]))
    tally = audience.tally([one, other])
    assert wrong(tally) == (0, 0)
    assert set(tally["delays_us"]) == {0, -1, 1}
