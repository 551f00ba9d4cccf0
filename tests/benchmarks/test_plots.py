from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.plots import PICTURES, draw, main, pictures_of

SPREAD = {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": [1.0, 2.0, 3.0]}
CUT = {"median": 40.0, "min": 40.0, "max": 40.0, "rounds": [40.0]}


def measure(**figures: Any) -> dict[str, Any]:
    kinds = {name: {"label": name, "decimals": 1, "more_is_better": False} for name in figures}
    results = [
        {"point": point, "contender": key, "name": key, "figures": figures}
        for point in (2, 10)
        for key in ("mesh", "unknown")
    ]
    return {
        "measured_at": "2026-01-01T00",
        "machine": {"cores": 2, "processor": "P", "python": "3"},
        "title": "Title",
        "unit": "nodes",
        "ours": ["mesh"],
        "figures": kinds,
        "results": results,
        "failures": [{"point": 20, "contender": "redis", "name": "Redis", "text": "no"}],
    }


@pytest.fixture
def result(tmp_path: Path) -> Path:
    measures = {
        "cluster": measure(events_per_second=SPREAD, p50_ms=SPREAD, carried_percent=CUT),
        "fanout": measure(cpu_us=SPREAD, bare_us=SPREAD),
        "novel": measure(something=SPREAD),
        "rooms": measure(),
    }
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"measures": measures}))
    return path


def test_draws_what_the_json_has(result: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(result), "--out", str(tmp_path / "images")], catch_exceptions=False)
    assert done.exit_code == 0
    drawn = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert drawn == ["events.png", "fanout.png", "latency.png", "novel.png"]


def test_what_failed_is_written_where_its_bar_would_be(result: Path) -> None:
    (picture,) = [picture for picture in PICTURES if picture.name == "fanout"]
    figure = draw(picture, json.loads(result.read_text())["measures"]["fanout"])
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts].count("failed") == 1


def test_a_measure_that_is_not_known_is_shown_by_what_is_compared(result: Path) -> None:
    measures = json.loads(result.read_text())["measures"]
    measures["novel"]["figures"]["facts"] = {"label": "", "decimals": 0, "more_is_better": None}
    (picture,) = [picture for picture in pictures_of(measures) if picture.measure == "novel"]
    assert list(picture.figures) == ["something"]


def test_says_what_to_install_when_matplotlib_is_missing(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = CliRunner().invoke(main, [str(result)])
    assert done.exit_code == 2
    assert "pip install" in done.output
