"""The table of `gevent-mesh demo --check`: one row for what went well together, a row of its own for each failure."""

from __future__ import annotations

import signal
import sys

import pytest

from gevent_mesh.demo.check import CHECKS, CheckFailed, Result, check_all, rows_of, same, show
from gevent_mesh.demo.processes import Demo, signals_held_back

GOOD = Result("rooms", "server-1", "server-2", 0.012)
SLOW = Result("rooms", "server-1", "server-3", 0.345)
BAD = Result("rooms", "server-1", "server-4", 5.0, error="nothing came")


def test_good_results_share_a_row_with_the_slowest_time() -> None:
    assert rows_of([GOOD, SLOW]) == [("rooms", "server-1 → server-2, server-3", "ok", "345 ms")]


def test_failures_have_rows_of_their_own() -> None:
    assert rows_of([GOOD, BAD]) == [
        ("rooms", "server-1 → server-2", "ok", "12 ms"),
        ("rooms", "server-1 → server-4", "FAILED: nothing came", "5000 ms"),
    ]


@pytest.mark.parametrize("with_rich", [True, False])
def test_table_is_readable_with_and_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], with_rich: bool
) -> None:
    if with_rich:
        pytest.importorskip("rich")
        monkeypatch.setenv("COLUMNS", "120")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    show([GOOD, SLOW, BAD])
    table = capsys.readouterr().out
    lines = [line for line in table.splitlines() if "rooms" in line]
    assert len(lines) == 2
    assert "345 ms" in lines[0]
    assert "FAILED: nothing came" in lines[1]


def test_differences_are_told_in_short() -> None:
    with pytest.raises(CheckFailed, match=r"got \[1\], not b'aaaaaa.*… \(1003 characters\)"):
        same([1], b"a" * 1000)


def test_out_of_time_every_check_has_failed_and_none_is_run() -> None:
    demo = Demo(2, 0)
    demo.urls = ["http://127.0.0.1:1", "http://127.0.0.1:2"]

    class Somebody:
        def __init__(self, server: str) -> None:
            self.server = server

    clients = {name: [Somebody(name), Somebody(name)] for name in ("server-1", "server-2")}
    results = check_all(demo, clients, deadline=0.0)  # type: ignore[arg-type]  # nothing else of a client is asked for
    assert len(results) == 2 * len(CHECKS)
    assert {result.error for result in results} == {"not run: no time left"}


def test_a_signal_during_the_start_of_a_child_takes_effect_when_the_child_is_known() -> None:
    known = []

    def start() -> None:
        with signals_held_back():
            signal.raise_signal(signal.SIGTERM)
            known.append("child")

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert known == ["child"]
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
