"""The benchmark as a user starts it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import eventually

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "benchmarks", "--quick"]

pytestmark = pytest.mark.integration


def run_benchmark(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path} if path is not None else None
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
    )


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_measures_contenders_and_writes_json(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    done = run_benchmark("--only", "cluster", "--contender", "mesh", "--contender", "redis", "--json", str(path))
    assert done.returncode == 0, done.stderr
    measured = json.loads(path.read_text())
    results = measured["measures"]["cluster"]["results"]
    assert [(result["point"], result["contender"]) for result in results] == [(2, "mesh"), (2, "redis")]
    for result in results:
        figures = {name: figure["median"] for name, figure in result["figures"].items()}
        assert figures["events_per_second"] > 0
        assert (figures["lost"], figures["doubled"], figures["late"]) == (0, 0, 0)
    assert "round 1 of 1" in done.stderr


def test_a_sid_is_one_message_to_one_node(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    done = run_benchmark("--only", "rooms", "--contender", "mesh", "--json", str(path))
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(path.read_text())["measures"]["rooms"]["results"]
    figures = {name: round(figure["median"], 2) for name, figure in result["figures"].items()}
    assert (figures["sid_sent"], figures["sid_received"], figures["sid_messages"]) == (1.0, 1.0, 0.0)
    assert figures["room_messages"] == 1.0


def test_says_what_to_install_when_redis_server_is_missing(tmp_path: Path) -> None:
    done = run_benchmark(path=str(tmp_path))
    assert done.returncode == 2
    assert "apt-get install redis-server" in done.stderr


def test_other_measures_of_the_file_are_kept_and_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    other = {"measured_at": "2026-01-01T00:00:00+00:00", "machine": {}, "results": []}
    path.write_text(json.dumps({"measures": {"memory": other, "forming": other}}))
    done = run_benchmark("--only", "forming", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert f"{path} keeps what it has of memory" in done.stderr
    measures = json.loads(path.read_text())["measures"]
    assert measures["memory"] == other
    assert measures["forming"]["results"]


def test_a_file_that_cannot_be_written_is_found_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_benchmark("--only", "forming", "--json", str(tmp_path / "file" / "result.json"))
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "round" not in done.stderr


def test_a_contender_that_a_measure_does_not_have_is_an_error(tmp_path: Path) -> None:
    done = run_benchmark("--only", "forming", "--contender", "redis", "--json", str(tmp_path / "result.json"))
    assert done.returncode == 2
    assert "forming: there is no contender redis" in done.stderr


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_redis_server_does_not_outlive_the_benchmark(tmp_path: Path, number: signal.Signals) -> None:
    command = [*COMMAND, "--only", "cluster", "--contender", "redis", "--json", str(tmp_path / "result.json")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as bench:
        process = psutil.Process(bench.pid)
        assert eventually(lambda: any(child.name() == "redis-server" for child in process.children()), 20)
        started = process.children(recursive=True)
        bench.send_signal(number)
        bench.wait(20)
    assert eventually(lambda: not [child for child in started if child.is_running()], 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes(tmp_path: Path, number: signal.Signals) -> None:
    command = [*COMMAND, "--only", "forming", "--json", str(tmp_path / "result.json")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as bench:
        started = eventually(lambda: len(found := psutil.Process(bench.pid).children()) > 5 and found, 20)
        bench.send_signal(number)
        assert bench.wait(20) in (1, 130, 143)
    assert started
    assert not [child for child in started if child.is_running()]
