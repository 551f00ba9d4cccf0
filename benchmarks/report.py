"""Figures out of rounds: medians, a table, JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .contenders import CONTENDERS, redis_server_version
from .measure import Plan, Round, percentile

__all__ = ["Figure", "as_json", "print_table", "summarize", "write"]

PACKAGES = ("gevent", "gevent-websocket", "python-socketio", "python-engineio", "msgpack", "redis")

# How the table calls each figure, how it is printed, and whether more is better.
ROWS = {
    "events_per_second": ("events/s received", "{:,.0f}", True),
    "cpu_us_per_event": ("CPU us/event, all processes", "{:.1f}", False),
    "latency_p50_ms": ("latency p50, ms", "{:.2f}", False),
    "latency_p99_ms": ("latency p99, ms", "{:.2f}", False),
}


class Figure:
    """One figure over all rounds."""

    def __init__(self, values: Sequence[float]) -> None:
        self.median = statistics.median(values)
        self.lowest = min(values)
        self.highest = max(values)

    def __repr__(self) -> str:
        return f"Figure(median={self.median}, lowest={self.lowest}, highest={self.highest})"

    def as_json(self) -> dict[str, float]:
        return {"median": round(self.median, 3), "min": round(self.lowest, 3), "max": round(self.highest, 3)}

    def text(self, form: str) -> str:
        return f"{form.format(self.median)} ({form.format(self.lowest)} - {form.format(self.highest)})"


def figures_of(one: Round) -> dict[str, float]:
    """The figures of one round."""
    figures = {
        "events_per_second": one.events_per_second,
        "cpu_us_per_event": one.cpu_us_per_event,
        "latency_p50_ms": percentile(one.delays_ms, 0.5),
        "latency_p99_ms": percentile(one.delays_ms, 0.99),
    }
    return figures | {f"cpu_us_per_event: {name}": value for name, value in one.cpu_us_by_process.items()}


def summarize(rounds: Sequence[Round]) -> dict[str, Figure]:
    """The figures of one contender over its rounds."""
    each = [figures_of(one) for one in rounds]
    return {name: Figure([figures[name] for figures in each]) for name in each[0]}


def as_json(plan: Plan, rounds: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Everything, with what is needed to judge it; nothing that names the machine or its folders."""
    return {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "redis_server": redis_server_version() if "redis" in rounds else None,
            "packages": {name: version(name) for name in PACKAGES} | {"gevent-mesh": version("gevent-mesh")},
        },
        "plan": {name: getattr(plan, name) for name in plan.__dataclass_fields__},
        "contenders": {key: _contender_as_json(of) for key, of in rounds.items()},
    }


def _contender_as_json(rounds: Sequence[Round]) -> dict[str, Any]:
    return {
        "name": CONTENDERS[rounds[0].contender].name,
        "figures": {name: figure.as_json() for name, figure in summarize(rounds).items()},
        "rounds": [
            {name: round(value, 3) for name, value in figures_of(one).items()}
            | {name: getattr(one, name) for name in ("emitted", "lost", "doubled", "late")}
            | {"drain_seconds": round(one.drain_seconds, 3)}
            for one in rounds
        ],
    }


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write the JSON, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def print_table(rounds: Mapping[str, Sequence[Round]]) -> None:
    """Medians over the rounds, lowest and highest in brackets."""
    keys = list(rounds)
    summaries = {key: summarize(rounds[key]) for key in keys}
    header = ["median (min - max)", *(CONTENDERS[key].name for key in keys)]
    if len(keys) == 2:
        header.append("better by")
    lines = []
    for name, (label, form, more_is_better) in ROWS.items():
        of = [summaries[key][name] for key in keys]
        lines.append([label, *(figure.text(form) for figure in of)])
        if len(keys) == 2:
            first, second = of[0].median, of[1].median
            lines[-1].append(_ratio(first, second) if more_is_better else _ratio(second, first))
    names = dict.fromkeys(name for key in keys for name in rounds[key][0].cpu_us_by_process)
    for name in names:
        of_name = [summaries[key].get(f"cpu_us_per_event: {name}") for key in keys]
        lines.append([f"  of it: {name}", *(figure.text("{:.1f}") if figure else "" for figure in of_name)])
    for label, attribute in (("events lost", "lost"), ("doubled", "doubled"), ("out of order", "late")):
        lines.append([label, *(f"{sum(getattr(one, attribute) for one in rounds[key]):,}" for key in keys)])
    lines[-3:] = [[*line, ""][: len(header)] for line in lines[-3:]]
    _print_rows(header, lines)


def _ratio(larger: float, smaller: float) -> str:
    return f"{larger / smaller:.1f} x" if smaller else ""


def _print_rows(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(line[i]) for line in [header, *lines] if i < len(line)) for i in range(len(header))]
        for line in [header, *lines]:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip())
        return
    table = Table()
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console = Console()
    if not sys.stdout.isatty():
        console = Console(width=140)
    console.print(table)


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
