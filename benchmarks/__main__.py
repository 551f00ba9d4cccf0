"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click

from .children import ROOT, BenchmarkError
from .measures import MEASURES
from .measuring import Measure, Results, take_samples
from .report import as_json, print_table, write

__all__ = ["main"]

RESULT = ROOT / "benchmarks" / "results" / "latest.json"
CONTENDERS = sorted({key for measure in MEASURES.values() for key in measure.contenders})


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1, 50), default=3, show_default=True, help="Rounds of each contender.")
@click.option("--quick", is_flag=True, help="One short round at few points: ends within two minutes.")
@click.option("--only", "measures", type=click.Choice(list(MEASURES)), multiple=True, help="Measure this; repeatable.")
@click.option("--contender", "contenders", type=click.Choice(CONTENDERS), multiple=True, help="Measure these alone.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), default=RESULT, help="Where to write.")
def main(rounds: int, quick: bool, measures: Sequence[str], contenders: Sequence[str], path: Path) -> None:
    """Measure gevent-mesh and the other ways, in turn."""
    signal.signal(signal.SIGTERM, _end)
    began = time.monotonic()

    def told(line: str) -> None:
        click.echo(f"[{time.monotonic() - began:4.0f} s] {line}", err=True)

    results: list[Results] = []
    try:
        for key in measures or MEASURES:
            measure = MEASURES[key]
            taking_part = _taking_part(measure, contenders)
            if taking_part:
                results.append(take_samples(measure, taking_part, 1 if quick else rounds, quick=quick, told=told))
                print_table(results[-1])
                # After each: a run that is interrupted keeps what it has.
                write(path, as_json(results))
    except BenchmarkError as error:
        click.echo(f"benchmark: {error}", err=True)
        sys.exit(error.exit_code)
    broken = [promise for result in results for promise in result.broken_promises()]
    for promise in broken:
        click.echo(f"benchmark: it never may, and has: {promise}", err=True)
    sys.exit(1 if broken else 0)


def _taking_part(measure: Measure, contenders: Sequence[str]) -> list[str]:
    return [key for key in measure.contenders if not contenders or key in contenders]


def _end(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)


if __name__ == "__main__":
    main()
