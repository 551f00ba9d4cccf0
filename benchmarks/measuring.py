"""What can be measured, and the one way in which it is: contenders in turn, in rounds, medians with their spread.

Rules:

- A *measure* knows how to take one sample: one contender, one point (so many nodes, or clients), fresh processes.
- At each point the contenders alternate, and each round begins with the one that the round before ended with, so that
  none is always first. What else the machine does in between hits one and not the other: it should do nothing else.
  How much of its CPU others had is measured with each sample, and told when it is much.
- A figure that is compared is the median of its rounds. The lowest and the highest are kept and shown.
- One round has too few events for a far percentile: that is taken of all rounds together (`Tail`).
- A contender that fails is told, and does not keep the others from being measured.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from .children import MISSING, ROOT, BenchmarkError

__all__ = [
    "OURS",
    "Failure",
    "Figure",
    "Kind",
    "Machine",
    "Measure",
    "Results",
    "Sample",
    "Tail",
    "percentile",
    "take_samples",
]

OURS = ("mesh", "mesh-interest", "queues")
"""The contenders that are our own manager; the first one is what the others are compared with."""
FOREIGN_PERCENT = 10.0
"""Of all cores: others that have more than this are told."""


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Attributes:
        label: how the table and the plots call it, with its unit.
        decimals: how many of them are shown.
        more_is_better: None for what is no matter of better or worse.
        never: whether our own manager must have none of it.
    """

    label: str
    decimals: int = 1
    more_is_better: bool | None = False
    never: bool = False

    def text(self, value: float) -> str:
        """A value as it is shown."""
        return f"{value:,.{self.decimals}f}"


Sample = dict[str, float]
"""The figures of one round, by the keys of their kinds."""


class Tail(float):
    """A percentile of one round that knows what it was taken of."""

    def __new__(cls, ordered: Sequence[float], share: float) -> Tail:
        return super().__new__(cls, percentile(ordered, share))

    def __init__(self, ordered: Sequence[float], share: float) -> None:
        self.ordered = ordered
        self.share = share


@dataclass(frozen=True)
class Measure:
    """Something that is measured.

    Attributes:
        key: how the command line and the JSON call it.
        title: what it is, in a few words.
        unit: what its points count: "nodes", "clients".
        points: at which it is measured, and those of the quick mode.
        contenders: by key, with the names that readers see.
        kinds: of its figures, in the order in which they are shown.
        sample: takes one: contender, point, whether it has to be quick.
    """

    key: str
    title: str
    unit: str
    points: Sequence[int]
    quick_points: Sequence[int]
    contenders: Mapping[str, str]
    kinds: Mapping[str, Kind]
    sample: Callable[[str, int, bool], Sample]

    def ours(self) -> list[str]:
        """Those of the contenders that are our own manager."""
        return [key for key in self.contenders if key in OURS]


class Figure:
    """One figure over all rounds. The median of a `Tail` is the percentile of all rounds together."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)
        tails = [value for value in values if isinstance(value, Tail)]
        if tails:
            self.median = percentile(sorted(each for tail in tails for each in tail.ordered), tails[0].share)
        else:
            self.median = statistics.median(values)
        self.lowest = min(values)
        self.highest = max(values)

    def __repr__(self) -> str:
        return f"Figure(median={self.median}, lowest={self.lowest}, highest={self.highest})"


@dataclass(frozen=True)
class Failure:
    """Why a sample could not be taken."""

    point: int
    contender: str
    text: str

    def line(self) -> str:
        """In one line: what happened, and the last words of the process that it happened to."""
        first, *log = [line.strip() for line in self.text.splitlines() if line.strip()]
        return f"{first} {log[-1]}".replace(f"{ROOT}/", "") if log else first


@dataclass
class Results:
    """All samples of one measure, by point and contender.

    Attributes:
        failures: why samples could not be taken.
        foreign_percent: of the machine's CPU that others had, for each sample.
    """

    measure: Measure
    samples: dict[tuple[int, str], list[Sample]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    foreign_percent: list[float] = field(default_factory=list)

    def points(self) -> list[int]:
        """The points that there are samples of."""
        return sorted({point for point, _ in self.samples})

    def contenders(self, point: int) -> list[str]:
        """The contenders that there are samples of, ours first."""
        return [key for key in self.measure.contenders if (point, key) in self.samples]

    def figures(self, point: int, contender: str) -> dict[str, Figure]:
        """The figures of one contender at one point, in the order of their kinds."""
        samples = self.samples[point, contender]
        names = [name for name in self.measure.kinds if name in samples[0]]
        return {name: Figure([sample[name] for sample in samples]) for name in names}

    def broken_promises(self) -> list[str]:
        """What our own manager must never do, and has done, in whatever mode."""
        return [
            f"{self.measure.key} at {point} {self.measure.unit}, {key}: {kind.label}: {sum(figure.values):g}"
            for point in self.points()
            for key in self.measure.ours()
            if (point, key) in self.samples
            for name, figure in self.figures(point, key).items()
            if (kind := self.measure.kinds[name]).never and any(figure.values)
        ]


def take_samples(
    measure: Measure, contenders: Sequence[str], rounds: int, *, quick: bool, told: Callable[[str], None]
) -> Results:
    """Measure at all points.

    Args:
        contenders: the keys of those who take part.
        rounds: how often each one is measured at each point.
        quick: at few points, for a short time.
        told: is called with a line for each sample, as soon as there is one.

    Raises:
        BenchmarkError: something is missing on this machine.
    """
    results = Results(measure)
    for point in measure.quick_points if quick else measure.points:
        for number in range(rounds):
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                where = f"{measure.key}, {point:,} {measure.unit}, round {number + 1} of {rounds}"
                who = f"{where}, {measure.contenders[contender]}"
                machine = Machine()
                try:
                    sample = measure.sample(contender, point, quick)
                except BenchmarkError as error:
                    if error.exit_code == MISSING:
                        raise
                    results.failures.append(Failure(point, contender, f"{who}: {error}"))
                    told(f"{who}: FAILED: {error}")
                    continue
                results.samples.setdefault((point, contender), []).append(sample)
                results.foreign_percent.append(machine.foreign_percent())
                told(f"{who}: {_summary(measure, sample)}{_disturbed(results.foreign_percent[-1])}")
    return results


def _summary(measure: Measure, sample: Sample) -> str:
    shown = [(name, kind) for name, kind in measure.kinds.items() if name in sample]
    return ", ".join(f"{kind.label} {kind.text(sample[name])}" for name, kind in shown[:4])


class Machine:
    """The machine's CPU from now on, and what of it is not ours."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._others = _cpu_seconds_of_others()

    def foreign_percent(self) -> float:
        """How much of all cores others had, once all of our processes of that time have ended."""
        whole = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, 100.0 * (_cpu_seconds_of_others() - self._others) / whole)


def _cpu_seconds_of_others() -> float:
    # Without interrupts: the network's are ours, and counted for nobody.
    times = psutil.cpu_times()
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    all_of_it: float = times.user + times.nice + times.system + getattr(times, "steal", 0.0)
    return all_of_it - sum(each.ru_utime + each.ru_stime for each in ours)


def _disturbed(percent: float) -> str:
    return f"; NOT ALONE: others had {percent:.0f} % of the machine" if percent > FOREIGN_PERCENT else ""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
