"""The processes and clients of a test, and the table of what was seen: printed at the end, and written as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import clients, ships
from tests.integration.processes import FULL, running_fleets
from tests.nemesis.figures import Figures, Row, table

__all__ = ["clients", "ships"]

RESULTS = os.environ.get("MESH_RESULTS")
"""The file that the rows are written to."""

_ROWS = pytest.StashKey[list[Row]]()
_FIGURES = pytest.StashKey[Figures]()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """What a test has measured: shown in its row."""
    node: pytest.Item = request.node
    return node.stash.setdefault(_FIGURES, Figures())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Make the row of a test with ``@pytest.mark.row(fault, must_hold)``, and add all logs to a failure."""
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    if report.failed:
        for started in running_fleets():
            report.sections += started.logs()
    marker = item.get_closest_marker("row")
    if marker is not None and (call.when == "call" or report.failed or report.skipped):
        fault, must_hold = marker.args
        seen = item.stash.setdefault(_FIGURES, Figures())
        row = Row(fault, must_hold, dict(seen), report.outcome, round(call.duration, 2), item.nodeid)
        item.config.stash.setdefault(_ROWS, []).append(row)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    if FULL:
        terminalreporter.write_sep("=", "what was seen")
        terminalreporter.write_line(table(rows))
    if RESULTS:
        machine = {"python": sys.version.split()[0], "platform": platform.platform(), "cores": os.cpu_count()}
        Path(RESULTS).write_text(json.dumps({"full": FULL, **machine, "rows": [row.told() for row in rows]}, indent=2))
        terminalreporter.write_line(f"written to {RESULTS}")
