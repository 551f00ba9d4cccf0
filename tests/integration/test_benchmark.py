"""The benchmark as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.integration


def run_benchmark(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path} if path is not None else None
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


def test_measures_the_mesh_and_writes_json(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = run_benchmark("--quick", "--only", "mesh", "--json", str(result))
    assert done.returncode == 0, done.stderr
    measured = json.loads(result.read_text())["contenders"]["mesh"]["rounds"]
    assert len(measured) == 1
    assert measured[0]["emitted"] > 0
    assert (measured[0]["lost"], measured[0]["doubled"], measured[0]["late"]) == (0, 0, 0)


def test_says_what_to_install_when_redis_server_is_missing(tmp_path: Path) -> None:
    done = run_benchmark("--quick", path=str(tmp_path))
    assert done.returncode == 2
    assert "apt-get install redis-server" in done.stderr
