from __future__ import annotations

import pytest

from benchmarks.measure import Round, percentile, steady_rate
from benchmarks.report import summarize

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


def test_summary_is_the_median_over_rounds() -> None:
    rounds = [
        Round("mesh", rate, 2.0, {"client": 1.0}, [1.0, 2.0, 3.0], 10, 0, 0, 0, 0.0) for rate in (100.0, 900.0, 300.0)
    ]
    figure = summarize(rounds)["events_per_second"]
    assert (figure.median, figure.lowest, figure.highest) == (300.0, 100.0, 900.0)
