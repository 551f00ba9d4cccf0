"""What the faults did: the figures that a test has measured, and the rows that the suite ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Figures", "Row", "table"]


class Figures(dict[str, Any]):
    """Measured figures by name; the name carries the unit: ``figures["noticed_seconds"] = 0.01``."""

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, round(value, 3) if isinstance(value, float) else value)
        print(f"\n    {name} = {self[name]}", end="", flush=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One fault.

    Attributes:
        must_hold: what is promised, in words.
        seen: the figures.
        outcome: passed, failed or skipped.
        test: what to run to see it again.
    """

    fault: str
    must_hold: str
    seen: dict[str, Any]
    outcome: str
    seconds: float
    test: str

    def told(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        seen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.seen.items())
        head = f"{self.outcome:8}{self.fault} ({self.seconds} s)"
        return "\n        ".join([head, f"must hold: {self.must_hold}", f"seen: {seen}"])


def table(rows: Sequence[Row]) -> str:
    return "\n".join(str(row) for row in rows)
