"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from .children import ROOT, BenchmarkError, end_on_signals
from .contenders import check_installed
from .measures import MEASURES
from .measuring import Measure, Results, take_samples
from .report import kept, measure_as_json, print_tables, write

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
    end_on_signals()
    began = time.monotonic()

    def told(line: str) -> None:
        click.echo(f"[{time.monotonic() - began:4.0f} s] {line}", err=True)

    chosen = [MEASURES[key] for key in measures or MEASURES]
    if measures and (without := [measure.key for measure in chosen if not _taking_part(measure, contenders)]):
        raise click.UsageError(f"{', '.join(without)}: there is no contender {' or '.join(contenders)}")
    chosen = [measure for measure in chosen if _taking_part(measure, contenders)]
    results: list[Results] = []
    try:
        check_installed({key for measure in chosen for key in _taking_part(measure, contenders)})
        written = kept(path)
        if others := written.keys() - {measure.key for measure in chosen}:
            told(f"{path} keeps what it has of {', '.join(sorted(others))}")
        for measure in chosen:
            taking_part = _taking_part(measure, contenders)
            results.append(take_samples(measure, taking_part, 1 if quick else rounds, quick=quick, told=told))
            written[measure.key] = measure_as_json(results[-1])
            print_tables(written[measure.key])
            # After each: a run that is interrupted keeps what it has.
            write(path, written)
    except BenchmarkError as error:
        click.echo(f"benchmark: {error}", err=True)
        sys.exit(error.exit_code)
    _end_with(results)


def _end_with(results: Sequence[Results]) -> NoReturn:
    """Tell what went wrong, and exit."""
    problems = [f"failed: {failure.text}" for result in results for failure in result.failures]
    problems += [f"never may be, and is: {promise}" for result in results for promise in result.broken_promises()]
    for problem in problems:
        click.echo(f"benchmark: {problem}", err=True)
    sys.exit(1 if problems else 0)


def _taking_part(measure: Measure, contenders: Sequence[str]) -> list[str]:
    return [key for key in measure.contenders if not contenders or key in contenders]


if __name__ == "__main__":
    main()
