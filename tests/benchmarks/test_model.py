"""The model, and that docs/scale.md says what it computes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import model
from benchmarks.measures import MEASURES
from benchmarks.plots import RESULT
from benchmarks.report import read
from benchmarks.scale import MEASURE as SCALE

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

ONES = dict.fromkeys(model.CONSTANTS, 1.0)


def test_the_page_holds_what_the_command_prints() -> None:
    page = model.PAGE.read_text(encoding="utf-8")
    assert model.filled_page(page, *model.read()) == page, "run: python -m benchmarks.model --write"
    printed = CliRunner().invoke(model.main).output.splitlines()
    assert len(printed) > 30
    assert set(printed) - {""} <= set(page.splitlines())


def test_constants_are_those_of_the_page_with_the_figures() -> None:
    values, _, taken = model.read()
    result = read(RESULT)
    measured = model.constants_from(result)
    assert {name: values[name] for name in measured} == measured, (
        "run: python -m benchmarks.model --take docs/performance.json --write"
    )
    for name in measured:
        measure = model.CONSTANTS[name].measure
        assert taken[measure] == {key: result["measures"][measure][key] for key in ("measured_at", "machine")}


def test_commands_of_the_page_exist() -> None:
    page = model.PAGE.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m ([\w.]+)", page))
    assert modules
    for name in modules:
        assert importlib.util.find_spec(name), name
    for target in re.findall(r"(?:^|`)make ([\w-]+)", page, re.MULTILINE):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


@pytest.mark.parametrize("name", model.CONSTANTS)
def test_constants_are_made_of_figures_that_are_measured(name: str) -> None:
    constant = model.CONSTANTS[name]
    measure = {**MEASURES, "scale": SCALE}.get(constant.measure)
    assert measure is not None, f"nothing measures {constant.measure}"
    assert all(point in (*measure.points, model.LARGEST) for point in constant.points)
    figures = dict.fromkeys(measure.kinds, 1.0)
    assert constant.value(*[figures] * len(constant.points)) >= 0


def test_constants_are_taken_from_a_result() -> None:
    def at(point: int, contender: str, kib: float) -> dict[str, object]:
        figures = {"kib": {"median": kib}, "collection_ms": {"median": 700.0}}
        return {"point": point, "contender": contender, "figures": figures}

    result = {
        "measures": {"memory": {"results": [at(5_000, "mesh", 1), at(10_000, "mesh", 2), at(10_000, "stock", 3)]}}
    }
    assert model.constants_from(result) == {"client_kib": 2, "collection_us": 70}


def test_the_largest_scale_run_counts() -> None:
    def at(point: int, idle: float) -> dict[str, object]:
        figures = {"idle_us": {"median": idle}, "kib": {"median": 1.0}, "system_kib": {"median": 3.0}}
        return {"point": point, "contender": "mesh", "figures": figures}

    result = {"measures": {"scale": {"results": [at(5_000, 1.0), at(100_000, 2.0)]}}}
    assert model.constants_from(result) == {"kernel_kib": 2.0, "ping_us": 2.0}


def test_needs_are_what_a_hand_computes() -> None:
    values = {**ONES, "delivery_us": 10.0, "connect_us": 500.0, "roster_bytes": 100.0}
    needs = model.needs(3_000_000, 300, values)
    assert needs["clients on each node"] == 10_000
    assert needs["links in all"] == 44_850
    assert needs["broadcast to all: CPU on each node, ms"] == 100
    assert needs["all nodes start at once: roster traffic, MB"] == 9
    assert needs["an event to a room: CPU of emitting it, µs"] == 299


def test_one_size_can_be_asked_for() -> None:
    done = CliRunner().invoke(model.main, ["--clients", "5000", "--nodes", "5"])
    assert done.exit_code == 0
    assert "| clients on each node | 1,000 |" in done.output


def test_constants_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_text('{"values": {"client_kib": 1}, "run": {}, "taken": {}}', encoding="utf-8")
    done = CliRunner().invoke(model.main, ["--constants", str(path)])
    assert done.exit_code == 1
    assert "lacks collection_us" in done.output
