"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from .children import ROOT, BenchmarkError
from .contenders import CONTENDERS, Contender, redis_server_version
from .measure import Plan, Round, measure
from .report import as_json, print_table, write

__all__ = ["main"]

RESULT = ROOT / "benchmarks" / "results" / "latest.json"
QUICK_PLAN = Plan(flood_seconds=2.0, run_in_seconds=0.5, pace_seconds=2.0)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1, 50), default=3, show_default=True, help="Rounds of each contender.")
@click.option("--quick", is_flag=True, help="One short round: does it run at all?")
@click.option("--only", type=click.Choice(sorted(CONTENDERS)), help="Measure one contender alone.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), default=RESULT, help="Where to write.")
def main(rounds: int, quick: bool, only: str | None, path: Path) -> None:
    """Measure GeventMeshManager and python-socketio's RedisManager, in turn."""
    signal.signal(signal.SIGTERM, _end)
    plan = QUICK_PLAN if quick else Plan()
    contenders = [CONTENDERS[only]] if only else list(CONTENDERS.values())
    try:
        measured = _measure_all(contenders, plan, 1 if quick else rounds)
    except BenchmarkError as error:
        click.echo(f"benchmark: {error}", err=True)
        sys.exit(error.exit_code)
    print_table(measured)
    write(path, as_json(plan, measured))
    if any(one.lost or one.doubled or one.late for one in measured.get("mesh", ())):
        click.echo("benchmark: GeventMeshManager lost, doubled or reordered events; it never may", err=True)
        sys.exit(1)


def _measure_all(contenders: list[Contender], plan: Plan, rounds: int) -> dict[str, list[Round]]:
    """All rounds; each starts with the contender that the one before ended with, so that none is always first."""
    if any(contender.key == "redis" for contender in contenders):
        redis_server_version()  # it is better to miss it now than after a minute
    measured: dict[str, list[Round]] = {contender.key: [] for contender in contenders}
    for number in range(rounds):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            one = measure(contender, plan)
            measured[contender.key].append(one)
            click.echo(
                f"round {number + 1} of {rounds}, {contender.name}: {one.events_per_second:,.0f} events/s, "
                f"{one.cpu_us_per_event:.1f} CPU us/event, {one.lost} lost, drained in {one.drain_seconds:.1f} s",
                err=True,
            )
    return measured


def _end(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)


if __name__ == "__main__":
    main()
