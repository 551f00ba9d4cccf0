"""What many clients on many nodes need: `python -m benchmarks.model --clients 3000000 --nodes 300`.

Rules:

- It multiplies what was measured on one machine, and nothing else: `docs/scale.json` holds each constant, what it
  means, the command that measures it, and when and where that was. ``--take RESULT.json`` takes them over from what
  those commands have written.
- Costs of one process are taken to grow in a straight line with its clients, its links, and the events that it handles.
  That was measured up to 15,000 clients and 100 nodes; beyond, it is an extrapolation.
- The network between hosts is not in it: loopback has neither its delays nor its limits.

``--write`` puts the tables into docs/scale.md, between its markers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .children import ROOT
from .document import fill, table
from .report import read as read_result
from .scale import MEASURE as SCALE

__all__ = [
    "CONSTANTS",
    "PAGE",
    "SIZES",
    "Constant",
    "constants_from",
    "filled_page",
    "main",
    "needs",
    "needs_table",
    "read",
]

PAGE = ROOT / "docs" / "scale.md"
VALUES = ROOT / "docs" / "scale.json"
SIZES = ((60_000, 6), (300_000, 30), (300_000, 100), (3_000_000, 300), (3_000_000, 1000))
HEARTBEAT_SECONDS = 5.0
LEAVING_SHARE = 0.001
"""Of all clients, that go and come in a second: each stays for a quarter of an hour."""
TALKING_SHARE = 0.01
"""Of all clients, that cause an event to a small room in a second."""

LARGEST = 0
"""Instead of a point: the largest one that was measured."""

Values = Mapping[str, float]
Figures = Mapping[str, float]
Taken = Mapping[str, Any]


@dataclass(frozen=True)
class Constant:
    """Something that was measured.

    Attributes:
        text: what it is, with its unit.
        measure, points: what it comes from.
        value: out of the medians of our own manager, by figure; of each point.
    """

    text: str
    measure: str
    points: Sequence[int]
    value: Callable[..., float]

    @property
    def command(self) -> str:
        """The command that measures it."""
        return "make bench-scale" if self.measure == "scale" else f'make bench ARGS="--only {self.measure}"'


def _slope(name: str) -> Callable[[Figures, Figures], float]:
    """What each further node adds, between the smallest and the largest cluster (2 and 10)."""
    return lambda few, many: (many[name] - few[name]) / 8


CONSTANTS = {
    "client_kib": Constant("resident memory of a client, KiB", "memory", (10_000,), lambda at: at["kib"]),
    "kernel_kib": Constant(
        "of the kernel and the client's own process, for each, KiB",
        "scale",
        (LARGEST,),
        lambda at: at["system_kib"] - at["kib"],
    ),
    "collection_us": Constant(
        "a full garbage collection, for each client, µs",
        "memory",
        (10_000,),
        lambda at: at["collection_ms"] * 1e3 / 10_000,
    ),
    "connect_us": Constant("CPU of a connect, µs", "churn", (15_000,), lambda at: at["connect_us"]),
    "disconnect_us": Constant("CPU of a disconnect, µs", "churn", (15_000,), lambda at: at["disconnect_us"]),
    "ping_us": Constant("CPU of an idle client's pings, µs a second", "scale", (LARGEST,), lambda at: at["idle_us"]),
    "delivery_us": Constant(
        "CPU of a delivery to one of many clients, µs", "fanout", (10_000,), lambda at: at["cpu_us"]
    ),
    "emit_us": Constant(
        "CPU of an event at the node that emits, to one peer, µs", "cluster", (2,), lambda at: at["cpu_us_emitting"]
    ),
    "peer_us": Constant("the same for each further peer, µs", "cluster", (2, 10), _slope("cpu_us_emitting")),
    "receive_us": Constant(
        "CPU of an event at a node that has no client for it, one by one, µs",
        "rooms",
        (10,),
        lambda at: at["room_cpu_us"],
    ),
    "receive_many_us": Constant(
        "the same when so many come that they share frames, µs",
        "cluster",
        (10,),
        lambda at: at["cpu_us_others"] / 8,
    ),
    "link_kib": Constant("resident memory of a link, at each end, KiB", "links", (100,), lambda at: at["link_kib"]),
    "link_begin_us": Constant("CPU of a link's beginning, at each end, µs", "links", (100,), lambda at: at["begin_us"]),
    "link_idle_us": Constant(
        "CPU of an idle link, at each end, µs a second", "links", (100,), lambda at: at["idle_us"]
    ),
    "roster_bytes": Constant(
        "roster traffic for each pair of nodes, when all start at once, bytes",
        "forming",
        (100,),
        lambda at: at["roster_mb"] * 1e6 / 100**2,
    ),
    "link_bytes": Constant(
        "an idle link's heartbeats, bytes a second from each end",
        "forming",
        (100,),
        lambda at: at["idle_bytes_per_second"] / 99,
    ),
}


@dataclass(frozen=True)
class Need:
    """One row of the table."""

    text: str
    value: Callable[[float, float, Values], float]
    decimals: int = 0

    def cell(self, clients: int, nodes: int, values: Values) -> str:
        return f"{self.value(clients, nodes, values):,.{self.decimals}f}"


def _event_us(nodes: float, values: Values) -> float:
    """CPU of an event at the node that emits it, to all other nodes."""
    return values["emit_us"] + max(0, nodes - 2) * values["peer_us"]


def _talk_us(clients: float, nodes: float, values: Values) -> float:
    """CPU µs a second of one node: its share of emitting, and receiving what all others emit."""
    events = clients * TALKING_SHARE
    return events / nodes * _event_us(nodes, values) + events * (nodes - 1) / nodes * values["receive_us"]


NEEDS = (
    Need("clients on each node", lambda c, n, _: c / n),
    Need("links of each node", lambda _, n, __: n - 1),
    Need("links in all", lambda _, n, __: n * (n - 1) / 2),
    Need("memory of each node's clients, MB", lambda c, n, v: c / n * v["client_kib"] * 1024 / 1e6),
    Need("memory of its links, MB", lambda _, n, v: (n - 1) * v["link_kib"] * 1024 / 1e6, 1),
    Need("memory in all, GB", lambda c, n, v: (c * v["client_kib"] + n * (n - 1) * v["link_kib"]) * 1024 / 1e9, 1),
    Need("a full garbage collection holds a node for, ms", lambda c, n, v: c / n * v["collection_us"] / 1e3),
    Need("heartbeats that a node sends, a second", lambda _, n, __: (n - 1) / HEARTBEAT_SECONDS, 1),
    Need("heartbeats of all nodes, kB/s", lambda _, n, v: n * (n - 1) * v["link_bytes"] / 1e3),
    Need("CPU of idle links, % of a core on each node", lambda _, n, v: (n - 1) * v["link_idle_us"] / 1e4, 2),
    Need("CPU of clients' pings, % of a core on each node", lambda c, n, v: c / n * v["ping_us"] / 1e4, 1),
    Need(
        "CPU of 0.1 % of the clients going and coming each second, % of a core",
        lambda c, n, v: c / n * LEAVING_SHARE * (v["connect_us"] + v["disconnect_us"]) / 1e4,
        1,
    ),
    Need(
        "a lost node's clients come back: CPU on each other node, s",
        lambda c, n, v: c / n / (n - 1) * v["connect_us"] / 1e6,
        2,
    ),
    Need("all nodes start at once: roster traffic, MB", lambda _, n, v: n**2 * v["roster_bytes"] / 1e6, 1),
    Need("and CPU of the links on each node, s", lambda _, n, v: (n - 1) * v["link_begin_us"] / 1e6, 2),
    Need("one more node: roster traffic, kB", lambda _, n, v: 2 * n * v["roster_bytes"] / 1e3, 1),
    Need("broadcast to all: CPU on each node, ms", lambda c, n, v: c / n * v["delivery_us"] / 1e3, 1),
    Need(
        "the last client has it after, ms",
        lambda c, n, v: (_event_us(n, v) + v["receive_us"] + c / n * v["delivery_us"]) / 1e3,
        1,
    ),
    Need(
        "broadcasts a second that fill a core of each node",
        lambda c, n, v: 1e6 / (c / n * v["delivery_us"] + v["receive_us"]),
        1,
    ),
    Need("an event to a room: CPU of emitting it, µs", lambda _, n, v: _event_us(n, v)),
    Need("and of all nodes that have nobody in it, µs", lambda _, n, v: (n - 1) * v["receive_us"]),
    Need("events of 1 % of the clients in a second, all nodes", lambda c, _, __: c * TALKING_SHARE),
    Need("CPU of them when they go to all nodes, % of a core on each", lambda c, n, v: _talk_us(c, n, v) / 1e4),
    Need(
        "the same if they share frames, % of a core on each",
        lambda c, n, v: _talk_us(c, n, {**v, "receive_us": v["receive_many_us"]}) / 1e4,
    ),
    Need(
        "CPU of them when each goes to two nodes, % of a core on each",
        lambda c, n, v: c * TALKING_SHARE / n * (_event_us(3, v) + 2 * v["receive_us"]) / 1e4,
        1,
    ),
)


def needs(clients: int, nodes: int, values: Values) -> dict[str, float]:
    """What so many clients on so many nodes need, by the texts of the table's rows."""
    return {need.text: need.value(clients, nodes, values) for need in NEEDS}


def needs_table(sizes: Sequence[tuple[int, int]], values: Values) -> str:
    """A column for each size."""
    header = ["clients / nodes", *(f"{clients:,} / {nodes:,}" for clients, nodes in sizes)]
    return table(header, [[need.text, *(need.cell(*size, values) for size in sizes)] for need in NEEDS])


def constants_table(values: Values, taken: Taken) -> str:
    """What was measured, with which command, and when."""
    lines = [
        [one.text, f"{values[name]:,.2f}", f"`{one.command}`", taken.get(one.measure, {}).get("measured_at", "")[:10]]
        for name, one in CONSTANTS.items()
    ]
    return table(["measured", "value", "command", "on"], lines)


CHECKS = (
    ("memory of a client on its node, KiB", "kib", "client_kib"),
    ("CPU of a connect, µs", "connect_us", "connect_us"),
    ("CPU of a delivery, µs", "broadcast_us", "delivery_us"),
    ("the last client has a broadcast after, ms", "broadcast_last_ms", "the last client has it after, ms"),
)
"""What it is, the figure of the run, and the constant or the row of the model that is beside it."""


def check_table(values: Values, run: Figures) -> str:
    """What the model says of the run, beside what was measured in it."""
    clients, nodes = round(run["clients"]), round(run["nodes"])
    modelled = {**values, **needs(clients, nodes, values)}
    lines = [
        [text, f"{modelled[row]:,.1f}", f"{run[name]:,.1f}", f"{run[name] / modelled[row]:.1f}"]
        for text, name, row in CHECKS
    ]
    return table([f"{clients:,} clients, {nodes} nodes", "modelled", "measured", "measured / modelled"], lines)


def run_table(run: Figures) -> str:
    """The largest run of `benchmarks.scale`."""
    kinds = SCALE.kinds
    lines = [[kind.label, kind.text(run[name])] for name, kind in kinds.items() if name in run]
    return table([f"{run['clients']:,.0f} clients", "measured"], lines)


def filled_page(page: str, values: Values, run: Figures, taken: Taken) -> str:
    """The page, with its tables between the markers as they are computed."""
    made = {
        "run": lambda: run_table(run),
        "needs": lambda: needs_table(SIZES, values),
        "check": lambda: check_table(values, run),
        "measured": lambda: constants_table(values, taken),
    }
    return fill(page, lambda name: made[name]())


def read(path: Path = VALUES) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """The constants, the figures of the run with the most clients, and when and where each measure was taken.

    Raises:
        click.ClickException: the file cannot be read, or one of them is missing.
    """
    values, run, taken = _stored(path)
    if missing := CONSTANTS.keys() - values.keys():
        raise click.ClickException(f"{path} lacks {', '.join(sorted(missing))}")
    return values, run, taken


def _stored(path: Path) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["values"], content["run"], content["taken"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"{path} holds no constants: {error}") from error


def constants_from(result: Mapping[str, Any]) -> dict[str, float]:
    """Those constants that a benchmark's JSON has the figures for."""
    taken = {}
    for name, one in CONSTANTS.items():
        figures = [_medians(result, one.measure, point) for point in one.points]
        if all(figures):
            taken[name] = round(one.value(*figures), 4)
    return taken


def run_from(result: Mapping[str, Any]) -> dict[str, float]:
    """The run with the most clients that a benchmark's JSON has; empty without any."""
    results = result["measures"].get(SCALE.key, {"results": []})["results"]
    clients = max((found["point"] for found in results), default=0)
    return {"clients": clients, **_medians(result, SCALE.key, clients)} if clients else {}


def _origins(result: Mapping[str, Any], measures: Iterable[str]) -> dict[str, Any]:
    """When and where measures were taken."""
    return {name: {key: result["measures"][name][key] for key in ("measured_at", "machine")} for name in measures}


def _medians(result: Mapping[str, Any], measure: str, point: int) -> dict[str, float]:
    results = result["measures"].get(measure, {"results": []})["results"]
    ours = {found["point"]: found["figures"] for found in results if found["contender"] == "mesh"}
    figures = ours.get(point if point != LARGEST else max(ours, default=0), {})
    return {name: figure["median"] for name, figure in figures.items()}


def _write_values(path: Path, values: Values, run: Figures, taken: Taken) -> None:
    content = {
        "taken": dict(taken),
        "text": {name: one.text for name, one in CONSTANTS.items()},
        "command": {name: one.command for name, one in CONSTANTS.items()},
        "values": {name: values[name] for name in CONSTANTS if name in values},
        "run": dict(run),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--clients", type=click.IntRange(1), help="Print the table for so many, instead of the page's.")
@click.option("--nodes", type=click.IntRange(2), default=100, show_default=True, help="And so many nodes.")
@click.option("--constants", type=click.Path(dir_okay=False, path_type=Path), default=VALUES, help="What was measured.")
@click.option(
    "--take",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Take what was measured from a benchmark's JSON; repeatable.",
)
@click.option("--write", is_flag=True, help="Put the tables into docs/scale.md.")
def main(clients: int | None, nodes: int, constants: Path, take: Sequence[Path], write: bool) -> None:
    """Compute what many clients on many nodes need."""
    if take:
        values, run, taken = _stored(constants) if constants.exists() else ({}, {}, {})
        for path in take:
            result = read_result(path)
            found = constants_from(result)
            values |= found
            run = run_from(result) or run
            taken |= _origins(result, {CONSTANTS[name].measure for name in found})
        _write_values(constants, values, run, taken)
    values, run, taken = read(constants)
    sizes = [(clients, nodes)] if clients else SIZES
    click.echo(needs_table(sizes, values) + "\n" + constants_table(values, taken), nl=False)
    if write:
        PAGE.write_text(filled_page(PAGE.read_text(encoding="utf-8"), values, run, taken), encoding="utf-8")


if __name__ == "__main__":
    main()
