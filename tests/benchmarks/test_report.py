from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks.document import filled
from benchmarks.measuring import Failure, Kind, Measure, Results
from benchmarks.report import kept, measure_as_json, read, tables, write


@pytest.fixture
def measured() -> dict[str, Any]:
    measure = Measure(
        key="cluster",
        title="Events",
        unit="nodes",
        points=(2,),
        quick_points=(2,),
        contenders={"mesh": "Ours", "queues": "Ours too", "redis": "Theirs"},
        kinds={
            "events_per_second": Kind("events/s", 0, more_is_better=True),
            "cpu_us": Kind("CPU"),
            "seconds": Kind("seconds", more_is_better=None),
        },
        sample=lambda *_: {},
    )
    ours = [{"events_per_second": rate, "cpu_us": 20.0, "seconds": 1.0} for rate in (1000.0, 3000.0, 2000.0)]
    theirs = [{"events_per_second": 500.0, "cpu_us": 100.0}]
    samples = {(2, "mesh"): ours, (2, "queues"): [{"cpu_us": 40.0}], (2, "redis"): theirs}
    results = Results(measure, samples, [Failure(5, "redis", "cluster, 5 nodes: no\nmore")])
    return {"measures": {"cluster": measure_as_json(results)}}


def test_cells_have_the_spread_and_how_much_better_ours_is_than_others(measured: dict[str, Any]) -> None:
    ((header, lines),) = tables(measured["measures"]["cluster"])
    assert header == ["2 nodes", "Ours", "Ours too", "Theirs"]
    assert lines == [
        ["events/s", "2,000 (1,000 - 3,000)", "", "500  x 4.00"],
        ["CPU", "20.0", "40.0", "100.0  x 5.00"],
        ["seconds", "1.0", "", ""],
    ]


def test_a_measure_without_results_has_no_table(measured: dict[str, Any]) -> None:
    assert list(tables({**measured["measures"]["cluster"], "results": []})) == []


def page(name: str) -> str:
    return f"before\n<!-- figures: {name} -->\nold\n<!-- /figures -->\nafter\n"


def test_tables_of_a_page_are_filled_again_and_again(measured: dict[str, Any]) -> None:
    text = filled(page("cluster"), measured)
    assert "| CPU | 20.0 | 40.0 | 100.0  x 5.00 |\n" in text
    assert "Failed: cluster, 5 nodes: no more\n" in text
    assert "*cluster: medians of 3 rounds, 20" in text
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
    assert "| 2 nodes | 2,000 |  | 500 | 71,570 | 79,733 |" in text
    assert "| 10 nodes |  |  |  | 7,851 | 29,579 |" in text


def test_what_is_worse_is_said_in_words(measured: dict[str, Any]) -> None:
    results = measured["measures"]["cluster"]["results"]
    theirs = next(result for result in results if result["contender"] == "redis")
    theirs["figures"]["cpu_us"]["median"] = 16.0
    assert "| 2 nodes: CPU | 20.0 | 16.0 | 1.2 times as much |" in filled(page("summary"), measured)


def test_a_file_keeps_its_other_measures(measured: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "folder" / "result.json"
    assert kept(path) == {}
    write(path, measured["measures"])
    assert kept(path) == read(path)["measures"] == measured["measures"]


@pytest.mark.parametrize("content", ["", "[]", '{"measures": {"cluster": {"results": []}}}'])
def test_a_file_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(click.ClickException, match="is no result of a benchmark"):
        kept(path)
    assert path.read_text() == content


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(click.ClickException, match="cannot be written"):
        kept(tmp_path / "file" / "result.json")
