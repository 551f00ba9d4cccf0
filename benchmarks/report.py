"""Figures out of samples: a table, and JSON with what is needed to judge it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .contenders import redis_server_version
from .measuring import Figure, Kind, Results

__all__ = ["as_json", "print_table", "write"]

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


def as_json(results: Sequence[Results]) -> dict[str, Any]:
    """Everything; nothing that names the machine or its folders."""
    return {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "redis_server": redis_server_version(),
            "packages": {name: found for name in PACKAGES if (found := _version(name))},
        },
        "measures": {result.measure.key: _measure_as_json(result) for result in results},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _measure_as_json(results: Results) -> dict[str, Any]:
    return {
        "title": results.measure.title,
        "unit": results.measure.unit,
        "figures": {name: kind.label for name, kind in results.measure.kinds.items()},
        "results": [
            {
                "point": point,
                "contender": key,
                "name": results.measure.contenders[key],
                "figures": {name: _figure_as_json(figure) for name, figure in results.figures(point, key).items()},
            }
            for point in results.points()
            for key in results.contenders(point)
        ],
    }


def _figure_as_json(figure: Figure) -> dict[str, Any]:
    return {
        "median": round(figure.median, 4),
        "min": round(figure.lowest, 4),
        "max": round(figure.highest, 4),
        "rounds": [round(value, 4) for value in figure.values],
    }


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write the JSON, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def print_table(results: Results) -> None:
    """Medians over the rounds, lowest and highest in brackets, and how much better ours is than each other one."""
    for point in results.points():
        keys = results.contenders(point)
        figures = {key: results.figures(point, key) for key in keys}
        ours, others = keys[0], keys[1:]
        is_compared = ours == next(iter(results.measure.contenders))
        header = [f"{point:,} {results.measure.unit}", *(results.measure.contenders[key] for key in keys)]
        lines = [
            [
                kind.label,
                *(
                    _cell(
                        kind, figures[key].get(name), figures[ours].get(name) if key in others and is_compared else None
                    )
                    for key in keys
                ),
            ]
            for name, kind in results.measure.kinds.items()
            if any(name in figures[key] for key in keys)
        ]
        _print_rows(results.measure.title, header, lines)


def _cell(kind: Kind, figure: Figure | None, ours: Figure | None) -> str:
    if figure is None:
        return ""
    text = kind.text(figure.median)
    if figure.lowest != figure.highest:
        text += f" ({kind.text(figure.lowest)} - {kind.text(figure.highest)})"
    if ours is None or kind.more_is_better is None or not figure.median or not ours.median:
        return text
    ratio = ours.median / figure.median if kind.more_is_better else figure.median / ours.median
    return f"{text}  x {ratio:.2f}"


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
