from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.children import BenchmarkError
from benchmarks.measures.cluster import carried_percent, steady_rate
from benchmarks.measuring import Kind, Measure, percentile, take_samples

SECOND = 1_000_000_000


def test_rate_counts_only_what_arrived_between_the_two_times() -> None:
    samples = [(0, 0), (1 * SECOND, 10), (2 * SECOND, 110), (3 * SECOND, 210), (4 * SECOND, 9_999)]
    assert steady_rate(samples, 1 * SECOND, 3 * SECOND) == 100


def test_rate_interpolates_between_samples() -> None:
    assert steady_rate([(0, 0), (4 * SECOND, 400)], 1 * SECOND, 2 * SECOND) == 100


def test_rate_is_zero_when_everything_came_before() -> None:
    assert steady_rate([(0, 0), (1 * SECOND, 50)], 2 * SECOND, 3 * SECOND) == 0


def test_what_comes_later_than_a_second_or_never_is_not_carried() -> None:
    assert carried_percent([SECOND // 2, SECOND - 1, SECOND], 4) == 50.0


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_percentile(share: float, value: float) -> None:
    assert percentile([float(i) for i in range(1, 101)], share) == value


def measure_of(taken: list[str], values: dict[str, list[float]]) -> Measure:
    def sample(contender: str, point: int, _quick: bool) -> dict[str, float]:
        taken.append(contender)
        return {"rate": values[contender].pop(0), "lost": 0.0 if point < 5 else 1.0}

    return Measure(
        key="test",
        title="Test",
        unit="nodes",
        points=(2,),
        quick_points=(5,),
        contenders={"ours": "Ours", "theirs": "Theirs"},
        kinds={"rate": Kind("events/s"), "lost": Kind("lost", never=True)},
        sample=sample,
    )


def test_contenders_alternate_and_figures_are_medians() -> None:
    taken: list[str] = []
    measure = measure_of(taken, {"ours": [100.0, 900.0, 300.0], "theirs": [1.0, 2.0, 3.0]})
    results = take_samples(measure, ["ours", "theirs"], 3, quick=False, told=lambda _: None)
    assert taken == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    figure = results.figures(2, "ours")["rate"]
    assert (figure.median, figure.lowest, figure.highest) == (300.0, 100.0, 900.0)
    assert results.broken_promises() == []


def test_what_may_never_be_is_told() -> None:
    results = take_samples(measure_of([], {"ours": [1.0]}), ["ours"], 1, quick=True, told=lambda _: None)
    assert results.broken_promises() == ["test at 5 nodes: lost: 1"]


def test_a_contender_that_fails_does_not_keep_the_others_from_being_measured() -> None:
    def sample(contender: str, _point: int, _quick: bool) -> dict[str, float]:
        if contender == "theirs":
            raise BenchmarkError("gone")
        return {"rate": 1.0}

    told: list[str] = []
    measure = replace(measure_of([], {}), sample=sample)
    results = take_samples(measure, ["ours", "theirs"], 1, quick=False, told=told.append)
    assert results.contenders(2) == ["ours"]
    assert results.failures == ["test, 2 nodes, round 1 of 1, Theirs: gone"]
    assert "FAILED: gone" in told[1]


def test_what_is_missing_on_the_machine_ends_the_run() -> None:
    def sample(_contender: str, _point: int, _quick: bool) -> dict[str, float]:
        raise BenchmarkError("not installed", 2)

    with pytest.raises(BenchmarkError):
        take_samples(replace(measure_of([], {}), sample=sample), ["ours"], 1, quick=True, told=lambda _: None)
