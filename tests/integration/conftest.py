"""The processes and clients of a test, and what they have written when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.clients import Client, clients_closed
from tests.integration.processes import Fleet, fleet, running_fleets


@pytest.fixture
def ships() -> Iterator[Fleet]:
    with fleet() as started:
        yield started


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    with clients_closed([]) as opened:
        yield opened


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Add the ends of all logs to the report of a failure."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for started in running_fleets():
            report.sections += started.logs()
