"""What is measured on one node, and the run with many clients, both small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measures import churn, fanout, memory

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.integration


def test_fan_out_is_measured_beside_the_bare_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUICK_DELIVERIES", "WARM_DELIVERIES"):
        monkeypatch.setattr(fanout, name, 600)
    sample = fanout.MEASURE.sample("mesh", 60, True)
    assert set(sample) == set(fanout.MEASURE.kinds)
    assert 0 < sample["bare_us"] < sample["cpu_us"] < 1_000
    assert 0 < sample["p50_ms"] <= sample["last_ms"]


def test_churn_is_measured_of_a_stock_manager_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(churn, "QUICK_BATCH", 20)
    sample = churn.MEASURE.sample("stock", 50, True)
    assert set(sample) == set(churn.MEASURE.kinds)
    assert min(sample["connect_us"], sample["disconnect_us"]) > 0


def test_memory_is_measured() -> None:
    sample = memory.MEASURE.sample("mesh", 100, True)
    assert 1 < sample["kib"] < 1_000


def run_scale(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.scale", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_a_mesh_with_clients_that_come_and_go_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "scale.json"
    done = run_scale("--clients", "200", "--nodes", "2", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(path.read_text())["measures"]["scale"]["results"]
    figures = {name: figure["median"] for name, figure in result["figures"].items()}
    assert (figures["lost"], figures["doubled"], figures["dropped"]) == (0, 0, 0)
    assert 0 < figures["broadcast_p50_ms"] <= figures["broadcast_last_ms"]
    assert "all 200 clients are connected" in done.stderr


def test_a_machine_that_is_too_small_is_told_which_limit_it_is() -> None:
    done = run_scale("--clients", "10000000", "--nodes", "2")
    assert done.returncode == 2
    assert "descriptors" in done.stderr
    assert "ulimit -Hn" in done.stderr
