from __future__ import annotations

from typing import Any

import pytest

from benchmarks.document import filled
from benchmarks.measuring import Kind, Measure, Results
from benchmarks.report import measure_as_json, tables


@pytest.fixture
def measured() -> dict[str, Any]:
    measure = Measure(
        key="cluster",
        title="Events",
        unit="nodes",
        points=(2,),
        quick_points=(2,),
        contenders={"mesh": "Ours", "redis": "Theirs"},
        kinds={
            "events_per_second": Kind("events/s", 0, more_is_better=True),
            "cpu_us": Kind("CPU"),
            "seconds": Kind("seconds", more_is_better=None),
        },
        sample=lambda *_: {},
    )
    ours = [{"events_per_second": rate, "cpu_us": 20.0, "seconds": 1.0} for rate in (1000.0, 3000.0, 2000.0)]
    theirs = [{"events_per_second": 500.0, "cpu_us": 100.0}]
    results = Results(measure, {(2, "mesh"): ours, (2, "redis"): theirs}, ["cluster, 5 nodes: no\nmore"])
    machine = {"cores": 2, "redis_server": "7", "processor": "P", "system": "S", "python": "3", "packages": {}}
    return {
        "measured_at": "2026-01-01T00:00:00+00:00",
        "machine": machine,
        "measures": {"cluster": measure_as_json(results)},
    }


def test_cells_have_the_spread_and_how_much_better_ours_is(measured: dict[str, Any]) -> None:
    ((header, lines),) = tables(measured["measures"]["cluster"])
    assert header == ["2 nodes", "Ours", "Theirs"]
    assert lines == [
        ["events/s", "2,000 (1,000 - 3,000)", "500  x 4.00"],
        ["CPU", "20.0", "100.0  x 5.00"],
        ["seconds", "1.0", ""],
    ]


def test_a_measure_without_results_has_no_table(measured: dict[str, Any]) -> None:
    assert list(tables({**measured["measures"]["cluster"], "results": []})) == []


def page(name: str) -> str:
    return f"before\n<!-- figures: {name} -->\nold\n<!-- /figures -->\nafter\n"


def test_tables_of_a_page_are_filled_again_and_again(measured: dict[str, Any]) -> None:
    text = filled(page("cluster"), measured)
    assert "| CPU | 20.0 | 100.0  x 5.00 |\n" in text
    assert "Failed: cluster, 5 nodes: no\n" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert filled(text, measured) == text


def test_a_page_says_what_was_not_measured(measured: dict[str, Any]) -> None:
    assert "python -m benchmarks --only churn" in filled(page("churn"), measured)


def test_summary_compares_with_redis(measured: dict[str, Any]) -> None:
    text = filled(page("summary"), measured)
    assert "| 2 nodes: events/s | 2,000 | 500 | 4.0 times as many |" in text
    assert "| 2 nodes: CPU | 20.0 | 100.0 | 5.0 times less |" in text


def test_node_figures_stand_beside_ours(measured: dict[str, Any]) -> None:
    text = filled(page("nodejs"), measured)
    assert "| 2 nodes | 2,000 | 500 | 71,570 | 79,733 |" in text
    assert "| 10 nodes |  |  | 7,851 | 29,579 |" in text
