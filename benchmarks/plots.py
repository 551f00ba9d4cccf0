"""Pictures of the figures: `python -m benchmarks.plots [JSON] [--out FOLDER]`.

Made of the JSON alone, whatever measures are in it. A picture is a column of panels, one for each figure: bars beside
each other at each point, the median written above, a line from the lowest round to the highest. A contender has the
same colour in all of them. A bar with a gap is higher than there is room for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .children import MISSING, ROOT
from .report import number, read, rounds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "Picture", "draw", "main", "pictures_of"]

RESULT = ROOT / "docs" / "performance.json"
FOLDER = ROOT / "docs" / "images"

INK, PALE = "#222222", "#dddddd"
COLOURS = {
    "mesh": "#0b6e99",
    "mesh-interest": "#4fb3bf",
    "redis": "#c0392b",
    "kombu": "#e08e2b",
    "queues": "#7fb2cc",
    "stock": "#8e6bb0",
}
OTHER_COLOURS = ("#7a8b99", "#5d8a4a", "#b5739d", "#333333")
WIDTH_INCHES, PANEL_INCHES, HEAD_INCHES = 9.0, 2.4, 1.05
CARRIED_PERCENT = 99.0
FAR_BEHIND, CUT_AT = 3.0, 1.25


@dataclass(frozen=True)
class Picture:
    """What is to be seen on one.

    Attributes:
        name: of the file, without its ending.
        measure: its key in the JSON.
        title: what it shows.
        figures: one panel for each; those that the JSON does not have are left out.
        limit: a figure that is drawn across the bars as what nothing can be better than.
    """

    name: str
    measure: str
    title: str
    figures: Sequence[str]
    limit: str = ""


PICTURES = (
    Picture("events", "cluster", "Events per second that a client of another node receives", ["events_per_second"]),
    Picture("cpu", "cluster", "CPU time of one event, all processes together", ["cpu_us"]),
    Picture("latency", "cluster", "Latency from one node to a client of another", ["p50_ms", "p99_ms", "p999_ms"]),
    Picture("fanout", "fanout", "One event to all clients of a node", ["cpu_us"], limit="bare_us"),
    Picture(
        "rooms",
        "rooms",
        "What an event for few costs each node that it is not for",
        ["room_cpu_us", "sid_cpu_us"],
    ),
    Picture(
        "forming",
        "forming",
        "Nodes that start at once, and then have nothing to do",
        ["whole_seconds", "roster_mb", "idle_cpu_percent"],
    ),
)
PANELS_OF_OTHERS = 3


def pictures_of(measures: Mapping[str, Any]) -> Iterator[Picture]:
    """What can be shown: the pictures above, and one of each measure that has none there."""
    for picture in PICTURES:
        if picture.measure in measures:
            yield picture
    for key in measures.keys() - {picture.measure for picture in PICTURES}:
        kinds = measures[key]["figures"]
        compared = [name for name, kind in kinds.items() if kind["more_is_better"] is not None]
        yield Picture(key, key, measures[key]["title"], compared[:PANELS_OF_OTHERS])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=RESULT)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=FOLDER, help="Where to write.")
def main(result: Path, out: Path) -> None:
    """Draw the figures of a JSON file that `python -m benchmarks` has written."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        click.echo("plots need matplotlib: pip install 'gevent-mesh[bench]', or pip install matplotlib", err=True)
        sys.exit(MISSING)
    measured = read(result)
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures_of(measured["measures"]):
        figure = draw(picture, measured["measures"][picture.measure])
        if figure is not None:
            path = out / f"{picture.name}.png"
            figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})
            click.echo(path)


def draw(picture: Picture, measure: Mapping[str, Any]) -> Figure | None:
    """A picture, or None when the measure has nothing of it."""
    from matplotlib.figure import Figure

    results = measure["results"]
    names = [name for name in picture.figures if any(name in result["figures"] for result in results)]
    if not names:
        return None
    height = HEAD_INCHES + PANEL_INCHES * len(names)
    figure = Figure(figsize=(WIDTH_INCHES, height))
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        _draw_panel(panel, measure, name, picture.limit)
    figure.subplots_adjust(left=0.03, right=0.97, top=1 - HEAD_INCHES / height, bottom=0.55 / height, hspace=0.42)
    _draw_head(figure, picture, measure, height)
    figure.text(0.03, 0.1 / height, _conditions(measure), fontsize=7.5, color="#666666")
    return figure


def _contenders(measure: Mapping[str, Any]) -> dict[str, str]:
    """Keys and names, in the order in which they are measured."""
    return {each["contender"]: each["name"] for each in [*measure["results"], *measure["failures"]]}


def _colours(measure: Mapping[str, Any]) -> dict[str, str]:
    others = iter(OTHER_COLOURS * 3)
    return {key: COLOURS.get(key) or next(others) for key in _contenders(measure)}


def _draw_head(figure: Figure, picture: Picture, measure: Mapping[str, Any], height: float) -> None:
    from matplotlib.patches import Patch

    figure.text(0.03, 1 - 0.3 / height, picture.title, fontsize=13, fontweight="bold", color=INK)
    colours = _colours(measure)
    handles = [Patch(color=colours[key], label=name) for key, name in _contenders(measure).items()]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.022, 1 - 0.36 / height),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handlelength=1.0,
        handleheight=1.0,
        borderpad=0.0,
        columnspacing=1.4,
    )


@dataclass(frozen=True)
class _Places:
    """Where each contender's bar is at each point. One that has only failed has its place as well."""

    points: Sequence[int]
    contenders: Sequence[str]

    @property
    def width(self) -> float:
        return 0.84 / len(self.contenders)

    def of(self, result: Mapping[str, Any]) -> float:
        order = self.contenders.index(result["contender"])
        return self.points.index(result["point"]) + (order - (len(self.contenders) - 1) / 2) * self.width


def _places(measure: Mapping[str, Any]) -> _Places:
    points = {each["point"] for each in [*measure["results"], *measure["failures"]]}
    return _Places(sorted(points), list(_contenders(measure)))


def _draw_panel(panel: Axes, measure: Mapping[str, Any], name: str, limit: str) -> None:
    """Bars of one figure."""
    kind, places, colours = measure["figures"][name], _places(measure), _colours(measure)
    bars = [result for result in measure["results"] if name in result["figures"]]
    top = _top(bars, name, is_cut=kind["more_is_better"] is False)
    measured = {places.of(result) for result in measure["results"]}
    for at in {places.of(failure) for failure in measure["failures"]} - measured:
        _write(panel, "failed", (at, 0))
    for result in bars:
        at, width = places.of(result), places.width
        _draw_bar(panel, at, width, result["figures"][name], top, colours[result["contender"]])
        _write(panel, _bar_text(kind, name, result), (at, min(result["figures"][name]["max"], top)))
        if limit in result["figures"]:
            panel.hlines(result["figures"][limit]["median"], at - width * 0.46, at + width * 0.46, INK, linewidth=2.5)
    panel.set_ylim(0, top * 1.12 or 1)
    panel.set_xlim(-0.5, len(places.points) - 0.5)
    ticks = [f"{point:,} {measure['unit']}" for point in places.points]
    panel.set_xticks(range(len(ticks)), ticks, fontsize=10, color=INK)
    panel.set_title(_panel_title(measure, name, limit), loc="left", fontsize=10, color=INK)
    panel.tick_params(length=0)
    panel.yaxis.set_visible(False)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(PALE)


def _draw_bar(panel: Axes, at: float, width: float, value: Mapping[str, float], top: float, colour: str) -> None:
    panel.bar(at, min(value["median"], top), width * 0.92, color=colour)
    if value["median"] > top:
        # The bar is cut.
        panel.hlines([top * 0.86, top * 0.92], at - width * 0.5, at + width * 0.5, "white", linewidth=3)
    elif value["min"] != value["max"]:
        panel.vlines(at, value["min"], min(value["max"], top), color=INK, linewidth=1.2)


def _write(panel: Axes, text: str, above: tuple[float, float]) -> None:
    panel.annotate(
        text, above, xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=9, color=INK
    )


def _bar_text(kind: Mapping[str, Any], name: str, result: Mapping[str, Any]) -> str:
    text = number(kind, result["figures"][name]["median"])
    if _is_carried(result):
        return text
    return f"{text}\n{result['figures']['carried_percent']['median']:.0f} % carried"


def _panel_title(measure: Mapping[str, Any], name: str, limit: str) -> str:
    kind = measure["figures"][name]
    better = {True: "more is better", False: "less is better", None: ""}[kind["more_is_better"]]
    notes = [better] if better else []
    if limit in measure["figures"]:
        notes.append(f"dark line: {measure['figures'][limit]['label']}")
    return f"{kind['label']}   ({'; '.join(notes)})" if notes else str(kind["label"])


def _is_carried(result: Mapping[str, Any]) -> bool:
    carried = result["figures"].get("carried_percent")
    return carried is None or carried["median"] >= CARRIED_PERCENT


def _top(bars: Sequence[Mapping[str, Any]], name: str, *, is_cut: bool) -> float:
    """The highest value that is drawn whole: one contender that is far behind must not make all others flat."""
    highest: dict[str, float] = {}
    for bar in bars:
        highest[bar["contender"]] = max(highest.get(bar["contender"], 0.0), bar["figures"][name]["max"])
    *others, worst = sorted(highest.values())
    return others[-1] * CUT_AT if is_cut and len(others) > 1 and worst > others[-1] * FAR_BEHIND else worst


def _conditions(measure: Mapping[str, Any]) -> str:
    machine, count = measure["machine"], rounds(measure)
    spread = f"median of {count} alternating rounds, lines from lowest to highest" if count > 1 else "one round"
    return (
        f"{spread}; bars with a gap are cut; {machine['cores']} cores, {machine['processor']}, "
        f"Python {machine['python']}; {measure['measured_at'][:10]}"
    )


if __name__ == "__main__":
    main()
