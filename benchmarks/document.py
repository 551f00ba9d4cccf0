"""Fills the tables of the documentation: `python -m benchmarks.document [JSON] [--check]`.

A table stands between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``. NAME is a measure of the JSON, or one of
`summary`, `nodejs`, `interest`, `conditions`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from .children import ROOT
from .plots import RESULT
from .report import conditions, number, ratio, read, tables

__all__ = ["PAGES", "fill", "filled", "main", "table"]

PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "rooms.md", ROOT / "README.md")

PLACE = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- /figures -->)", re.DOTALL)

SUMMARY = (
    ("cluster", 2, "events_per_second"),
    ("cluster", 10, "events_per_second"),
    ("cluster", 2, "cpu_us"),
    ("cluster", 10, "cpu_us"),
    ("cluster", 2, "p50_ms"),
    ("cluster", 2, "p99_ms"),
)

# Events a second, by number of nodes: measured once with the packages' own servers on two cores of this kind, in
# another hour. No command here gives them again.
NODEJS = {
    "socket.io-mesh-adapter": {2: 71_570, 5: 20_150, 10: 7_851},
    "Node's Redis adapter": {2: 79_733, 5: 48_737, 10: 29_579},
}


def filled(page: str, measured: Mapping[str, Any]) -> str:
    """A page with its tables as the JSON gives them."""
    return fill(page, lambda name: _text(name, measured))


def fill(page: str, text_of: Callable[[str], str]) -> str:
    """A page with the text of each place, by its name."""
    return PLACE.sub(lambda place: place[1] + text_of(place[2]) + place[3], page)


def _text(name: str, measured: Mapping[str, Any]) -> str:
    if name == "summary":
        return table(*_summary(measured))
    if name == "nodejs":
        return table(*_nodejs(measured))
    if name == "conditions":
        return _conditions(measured)
    if name == "interest":
        return _interest(measured)
    if name not in measured["measures"]:
        return f"Not in this run; `python -m benchmarks --only {name}` measures it.\n"
    measure = measured["measures"][name]
    failed = [f"Failed: {failure['text']}\n" for failure in measure["failures"]]
    note = f"*{name}: {conditions(measure)}.*\n"
    return "\n".join([*(table(header, lines) for header, lines in tables(measure)), *failed, note])


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table as Markdown has it."""
    rows = [header, ["---", *("---:" for _ in header[1:])], *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _figures(measured: Mapping[str, Any], measure: str, point: int, contender: str) -> Mapping[str, Any]:
    for result in measured["measures"].get(measure, {"results": []})["results"]:
        if (result["point"], result["contender"]) == (point, contender):
            figures: Mapping[str, Any] = result["figures"]
            return figures
    return {}


def _summary(measured: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    lines = []
    for measure, point, name in SUMMARY:
        ours = _figures(measured, measure, point, "mesh").get(name)
        theirs = _figures(measured, measure, point, "redis").get(name)
        if ours is None or theirs is None:
            continue
        kind = measured["measures"][measure]["figures"][name]
        times = ratio(kind, ours, theirs)
        better = "" if times is None else _compared(times, more_is_better=kind["more_is_better"])
        lines.append(
            [f"{point} nodes: {kind['label']}", number(kind, ours["median"]), number(kind, theirs["median"]), better]
        )
    version = measured["measures"].get("cluster", {"machine": {"redis_server": ""}})["machine"]["redis_server"]
    return ["", "gevent-mesh", f"`RedisManager`, redis-server {version}", ""], lines


def _compared(times: float, *, more_is_better: bool) -> str:
    if f"{times:.1f}" == "1.0":
        return "the same"
    if more_is_better:
        return f"{times:.1f} times as many"
    return f"{times:.1f} times less" if times > 1 else f"{1 / times:.1f} times as much"


def _nodejs(measured: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    measure = measured["measures"].get("cluster", {"results": []})
    here = {result["contender"]: result["name"] for result in measure["results"]}
    points = sorted({result["point"] for result in measure["results"]} | {2, 5, 10})
    lines = [
        [
            f"{point} nodes",
            *(_events(_figures(measured, "cluster", point, key)) for key in here),
            *(f"{rates[point]:,}" if point in rates else "" for rates in NODEJS.values()),
        ]
        for point in points
    ]
    return ["events/s", *here.values(), *NODEJS], lines


def _interest(measured: Mapping[str, Any]) -> str:
    """What an event for a room costs the nodes without a member of it, without interest in rooms and with it."""
    measure = measured["measures"].get("rooms", {"results": []})
    lines = []
    for point in sorted({result["point"] for result in measure["results"]}):
        without, with_it = (_figures(measured, "rooms", point, key) for key in ("mesh", "mesh-interest"))
        if without and with_it:
            cells = [
                number(measure["figures"][name], figures[name]["median"])
                for name in ("room_sent", "room_cpu_us")
                for figures in (without, with_it)
            ]
            lines.append([f"{point}", *cells])
    if not lines:
        return "Not in this run; `python -m benchmarks --only rooms` measures it.\n"
    header = ["nodes", "messages sent, without", "with", "CPU µs of each node without a member, without", "with"]
    return f"{table(header, lines)}\n*rooms: {conditions(measure)}.*\n"


def _events(figures: Mapping[str, Any]) -> str:
    return f"{figures['events_per_second']['median']:,.0f}" if "events_per_second" in figures else ""


def _conditions(measured: Mapping[str, Any]) -> str:
    """A line for each machine, with the measures that it has taken."""
    measures: dict[str, list[str]] = {}
    for name, measure in measured["measures"].items():
        measures.setdefault(_machine(measure["machine"]), []).append(name)
    return "\n".join(f"Measured on {machine}: {', '.join(names)}.\n" for machine, names in measures.items())


def _machine(machine: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['cores']} cores ({machine['processor']}), {machine['system']}, Python {machine['python']}, "
        f"redis-server {machine['redis_server']}, {packages}"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=RESULT)
@click.option("--check", is_flag=True, help="Change nothing; fail when a page is not what the JSON gives.")
def main(result: Path, check: bool) -> None:
    """Fill the tables of the pages from a JSON file that `python -m benchmarks` has written."""
    measured = read(result)
    stale = [page for page in PAGES if filled(page.read_text("utf-8"), measured) != page.read_text("utf-8")]
    for page in stale:
        click.echo(f"{page.relative_to(ROOT)}: {'is not what the JSON gives' if check else 'filled'}")
        if not check:
            page.write_text(filled(page.read_text("utf-8"), measured), encoding="utf-8")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
