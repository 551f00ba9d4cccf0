from __future__ import annotations

import pytest

from benchmarks.measures.cluster import steady_rate
from benchmarks.measuring import Kind, Measure, percentile, take_samples

SECOND = 1_000_000_000


def test_rate_counts_only_what_arrived_between_the_two_times() -> None:
    samples = [(0, 0), (1 * SECOND, 10), (2 * SECOND, 110), (3 * SECOND, 210), (4 * SECOND, 9_999)]
    assert steady_rate(samples, 1 * SECOND, 3 * SECOND) == 100


def test_rate_interpolates_between_samples() -> None:
    assert steady_rate([(0, 0), (4 * SECOND, 400)], 1 * SECOND, 2 * SECOND) == 100


def test_rate_is_zero_when_everything_came_before() -> None:
    assert steady_rate([(0, 0), (1 * SECOND, 50)], 2 * SECOND, 3 * SECOND) == 0


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
