"""Figures out of samples: JSON with what is needed to judge them, and tables of it.

The tables, the plots and docs/performance.md are made of the JSON alone.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from .contenders import redis_server_version
from .measuring import Figure, Results

__all__ = [
    "conditions",
    "kept",
    "measure_as_json",
    "number",
    "print_tables",
    "ratio",
    "read",
    "rounds",
    "tables",
    "write",
]

PACKAGES = (
    "gevent-mesh",
    "gevent",
    "gevent-websocket",
    "kombu",
    "msgpack",
    "python-engineio",
    "python-socketio",
    "redis",
)


def _machine() -> dict[str, Any]:
    """Where it is measured; nothing that names the machine or its folders."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "redis_server": redis_server_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def measure_as_json(results: Results) -> dict[str, Any]:
    """One measure, with what is needed to show it and to judge it."""
    measure = results.measure
    return {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": _machine(),
        "foreign_percent": round(max(results.foreign_percent, default=0.0), 1),
        "title": measure.title,
        "unit": measure.unit,
        "ours": measure.ours(),
        "figures": {
            name: {"label": kind.label, "decimals": kind.decimals, "more_is_better": kind.more_is_better}
            for name, kind in measure.kinds.items()
        },
        "results": [
            {
                "point": point,
                "contender": key,
                "name": measure.contenders[key],
                "figures": {name: _figure_as_json(figure) for name, figure in results.figures(point, key).items()},
            }
            for point in results.points()
            for key in results.contenders(point)
        ],
        "failures": [
            {
                "point": failure.point,
                "contender": failure.contender,
                "name": measure.contenders[failure.contender],
                "text": failure.line(),
            }
            for failure in results.failures
        ],
    }


def _figure_as_json(figure: Figure) -> dict[str, Any]:
    return {
        "median": round(figure.median, 4),
        "min": round(figure.lowest, 4),
        "max": round(figure.highest, 4),
        "rounds": [round(value, 4) for value in figure.values],
    }


def write(path: Path, measures: Mapping[str, Any]) -> None:
    """Write the JSON, and the folders above it.

    Raises:
        click.ClickException: that is not possible.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"measures": measures}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error


def read(path: Path) -> dict[str, Any]:
    """What a benchmark has written.

    Raises:
        click.ClickException: it is not there, or something else.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not all({"measured_at", "machine", "results"} <= each.keys() for each in result["measures"].values()):
            raise ValueError("a measure does not say when and where it was taken")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise click.ClickException(
            f"{path} is no result of a benchmark ({error}): remove it, or name another file"
        ) from error
    return dict(result)


def kept(path: Path) -> dict[str, Any]:
    """The measures that a file has already; it is known to be writable afterwards.

    Raises:
        click.ClickException: it is something else, or cannot be written.
    """
    measures: dict[str, Any] = read(path)["measures"] if path.exists() else {}
    write(path, measures)
    return measures


def rounds(measured: Mapping[str, Any]) -> int:
    """How many rounds a measure has had, at most."""
    figures = (figure for result in measured["results"] for figure in result["figures"].values())
    return max((len(figure["rounds"]) for figure in figures), default=0)


def conditions(measured: Mapping[str, Any]) -> str:
    """How often and when a measure was taken, and whether alone."""
    count = rounds(measured)
    when = f"{measured['measured_at'][:16].replace('T', ' ')} UTC"
    text = f"{'one round' if count == 1 else f'medians of {count} rounds'}, {when}"
    foreign = measured.get("foreign_percent")
    return text if foreign is None else f"{text}; other processes had at most {foreign:.0f} % of the machine's CPU"


def tables(measured: Mapping[str, Any]) -> Iterator[tuple[list[str], list[list[str]]]]:
    """A table for each point of a measure: header and lines.

    Cells are medians, the lowest and the highest in brackets, and how much better ours is than each one of others.
    """
    for point in sorted({result["point"] for result in measured["results"]}):
        results = [result for result in measured["results"] if result["point"] == point]
        ours: Mapping[str, Any] = next(
            (each["figures"] for each in results if each["contender"] in measured["ours"][:1]), {}
        )
        header = [f"{point:,} {measured['unit']}", *(result["name"] for result in results)]
        lines = [
            [kind["label"]]
            + [
                _cell(
                    kind, each["figures"].get(name), None if each["contender"] in measured["ours"] else ours.get(name)
                )
                for each in results
            ]
            for name, kind in measured["figures"].items()
            if any(name in each["figures"] for each in results)
        ]
        yield header, lines


def number(kind: Mapping[str, Any], value: float) -> str:
    """A value as it is shown."""
    return f"{value:,.{kind['decimals']}f}"


def ratio(kind: Mapping[str, Any], ours: Mapping[str, float], theirs: Mapping[str, float]) -> float | None:
    """How much better ours is; None where that says nothing."""
    better, worse = (ours, theirs) if kind["more_is_better"] else (theirs, ours)
    # What is shown as nothing has no ratio to anything.
    if kind["more_is_better"] is None or not all(round(each["median"], kind["decimals"]) for each in (ours, theirs)):
        return None
    return better["median"] / worse["median"]


def _cell(kind: Mapping[str, Any], figure: Mapping[str, float] | None, ours: Mapping[str, float] | None) -> str:
    if figure is None:
        return ""
    text = number(kind, figure["median"])
    if figure["min"] != figure["max"]:
        text += f" ({number(kind, figure['min'])} - {number(kind, figure['max'])})"
    times = ratio(kind, ours, figure) if ours is not None else None
    return f"{text}  x {times:.2f}" if times is not None else text


def print_tables(measured: Mapping[str, Any]) -> None:
    """Show a measure on the terminal."""
    for header, lines in tables(measured):
        _print_rows(measured["title"], header, lines)


def _print_rows(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
        print(title)
        for line in [header, *lines]:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console = Console()
    if not sys.stdout.isatty():
        console = Console(width=180)
    console.print(table)


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
