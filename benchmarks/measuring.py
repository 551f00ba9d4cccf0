"""What can be measured, and the one way in which it is: contenders in turn, in rounds, medians with their spread.

Rules:

- A *measure* knows how to take one sample: one contender, one point (so many nodes, or clients), fresh processes.
- At each point the contenders alternate, and each round begins with the one that the round before ended with, so that
  none is always first, and whatever else the machine does hits all of them.
- A figure that is compared is the median of its rounds. The lowest and the highest are kept and shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .children import BenchmarkError

__all__ = ["Figure", "Kind", "Measure", "Results", "Sample", "percentile", "take_samples"]


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


@dataclass(frozen=True)
class Measure:
    """Something that is measured.

    Attributes:
        key: how the command line and the JSON call it.
        title: what it is, in a few words.
        unit: what its points count: "nodes", "clients".
        points: at which it is measured, and those of the quick mode.
        contenders: by key, with the names that readers see; the first one is ours.
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


class Figure:
    """One figure over all rounds."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)
        self.median = statistics.median(values)
        self.lowest = min(values)
        self.highest = max(values)

    def __repr__(self) -> str:
        return f"Figure(median={self.median}, lowest={self.lowest}, highest={self.highest})"


@dataclass
class Results:
    """All samples of one measure, by point and contender."""

    measure: Measure
    samples: dict[tuple[int, str], list[Sample]] = field(default_factory=dict)

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
        """What our own manager must never do, and has done."""
        ours = next(iter(self.measure.contenders))
        return [
            f"{self.measure.key} at {point} {self.measure.unit}: {kind.label}: {sum(figure.values):g}"
            for point in self.points()
            if (point, ours) in self.samples
            for name, figure in self.figures(point, ours).items()
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
        BenchmarkError: a sample could not be taken.
    """
    results = Results(measure)
    for point in measure.quick_points if quick else measure.points:
        for number in range(rounds):
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                where = f"{measure.key}, {point:,} {measure.unit}, round {number + 1} of {rounds}"
                try:
                    sample = measure.sample(contender, point, quick)
                except BenchmarkError as error:
                    raise BenchmarkError(f"{where}, {contender}: {error}", error.exit_code) from None
                results.samples.setdefault((point, contender), []).append(sample)
                told(f"{where}, {measure.contenders[contender]}: {_summary(measure, sample)}")
    return results


def _summary(measure: Measure, sample: Sample) -> str:
    shown = [(name, kind) for name, kind in measure.kinds.items() if name in sample]
    return ", ".join(f"{kind.label} {kind.text(sample[name])}" for name, kind in shown[:4])


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
