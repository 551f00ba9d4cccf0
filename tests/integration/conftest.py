"""Shows what the processes of a failed test have written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.processes import running_fleets


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Add the ends of all logs to the report of a failure."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for started in running_fleets():
            report.sections += started.logs()
