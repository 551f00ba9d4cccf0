from __future__ import annotations

import platform
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from benchmarks.children import ROOT, BenchmarkError
from benchmarks.contenders import check_installed
from benchmarks.measures.cluster import carried_percent, steady_rate
from benchmarks.measuring import Failure, Figure, Kind, Machine, Measure, Tail, percentile, take_samples

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
        contenders={"mesh": "Ours", "redis": "Theirs", "queues": "Ours as well"},
        kinds={"rate": Kind("events/s"), "lost": Kind("lost", never=True)},
        sample=sample,
    )


def test_contenders_alternate_and_figures_are_medians() -> None:
    taken: list[str] = []
    measure = measure_of(taken, {"mesh": [100.0, 900.0, 300.0], "redis": [1.0, 2.0, 3.0]})
    results = take_samples(measure, ["mesh", "redis"], 3, quick=False, told=lambda _: None)
    assert taken == ["mesh", "redis", "redis", "mesh", "mesh", "redis"]
    figure = results.figures(2, "mesh")["rate"]
    assert (figure.median, figure.lowest, figure.highest) == (300.0, 100.0, 900.0)
    assert results.broken_promises() == []


def test_what_may_never_be_is_told() -> None:
    results = take_samples(measure_of([], {"mesh": [1.0]}), ["mesh"], 1, quick=True, told=lambda _: None)
    assert results.broken_promises() == ["test at 5 nodes, mesh: lost: 1"]


def test_what_may_never_be_may_not_be_in_other_modes_of_ours_either() -> None:
    measure = measure_of([], {"queues": [1.0], "redis": [1.0]})
    results = take_samples(measure, ["queues", "redis"], 1, quick=True, told=lambda _: None)
    assert results.broken_promises() == ["test at 5 nodes, queues: lost: 1"]


def test_a_far_percentile_is_that_of_all_rounds_together() -> None:
    rounds = [Tail([1.0] * 9 + [worst], 0.95) for worst in (5.0, 90.0, 7.0)]
    figure = Figure(rounds)
    assert figure.values == [5.0, 90.0, 7.0]
    assert figure.median == 7.0
    assert Figure([Tail([1.0] * 10, 0.95), Tail([1.0] * 9 + [5.0], 0.95)]).median == 1.0


def test_a_contender_that_fails_does_not_keep_the_others_from_being_measured() -> None:
    def sample(contender: str, _point: int, _quick: bool) -> dict[str, float]:
        if contender == "redis":
            raise BenchmarkError("gone")
        return {"rate": 1.0}

    told: list[str] = []
    measure = replace(measure_of([], {}), sample=sample)
    results = take_samples(measure, ["mesh", "redis"], 1, quick=False, told=told.append)
    assert results.contenders(2) == ["mesh"]
    assert [failure.line() for failure in results.failures] == ["test, 2 nodes, round 1 of 1, Theirs: gone"]
    assert "FAILED: gone" in told[1]


def test_a_failure_is_told_in_one_line_with_its_reason() -> None:
    failure = Failure(2, "mesh", f"node 1 ended with code 1:\nTraceback:\n{ROOT}/x.py\nOSError: no room in {ROOT}/y\n")
    assert failure.line() == "node 1 ended with code 1: OSError: no room in y"


def test_what_is_missing_on_the_machine_ends_the_run() -> None:
    def sample(_contender: str, _point: int, _quick: bool) -> dict[str, float]:
        raise BenchmarkError("not installed", 2)

    with pytest.raises(BenchmarkError):
        take_samples(replace(measure_of([], {}), sample=sample), ["mesh"], 1, quick=True, told=lambda _: None)


def test_what_others_took_of_the_machine_is_told_when_it_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([3.0, 40.0])
    monkeypatch.setattr(Machine, "foreign_percent", lambda _: next(shares))
    told: list[str] = []
    results = take_samples(
        measure_of([], {"mesh": [1.0], "redis": [1.0]}), ["mesh", "redis"], 1, quick=False, told=told.append
    )
    assert results.foreign_percent == [3.0, 40.0]
    assert ["NOT ALONE" in line for line in told] == [False, True]


def test_our_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    others = 5.0
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=time.process_time(), nice=others, system=0.0))
    machine = Machine()
    ends = time.process_time() + 0.2
    while time.process_time() < ends:
        pass
    assert machine.foreign_percent() < 10
    others += 1.0
    assert machine.foreign_percent() > 50


def test_another_system_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(BenchmarkError, match="needs Linux"):
        check_installed(["mesh"])
