"""What `gevent-mesh emit` does: events from a shell, and from pipelines.

Rules:

- Exit code 0 means that every node has every event; 1 that some could not be delivered in time; 2 that what was given
  is not usable. What came before a line that is not usable is delivered.
- An event leaves when its line has come, not at the end of the input.
- Whatever bytes come, text is valid: what is not UTF-8 is replaced by U+FFFD.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

import click

from . import EmitterError, GeventMeshManager, PayloadError

__all__ = ["emit"]

STANDARD_INPUT = "-"


def emit(
    event: str,
    arguments: Sequence[str],
    *,
    rooms: Sequence[str],
    exclude: Sequence[str],
    namespace: str,
    discovery: str | None,
    channel: str,
    timeout: float,
    is_text: bool,
) -> int:
    """Emit one event, or one for each line of the standard input.

    Returns:
        The exit code.

    Raises:
        click.ClickException: what was given is not usable, or cannot be sent.
        ConfigError: an option cannot work.
    """
    logging.basicConfig(level=logging.WARNING, format="gevent-mesh: %(message)s")
    signal.signal(signal.SIGTERM, _terminated)
    event, namespace = _valid(event), _valid(namespace)
    rooms, exclude = [_valid(room) for room in rooms], [_valid(room) for room in exclude]
    events = _events([_valid(argument) for argument in arguments], is_text)
    manager = GeventMeshManager(discovery, channel=channel, write_only=True)
    try:
        for values in events:
            manager.emit(event, values, namespace=namespace, room=list(rooms) or None, skip_sid=list(exclude))
    except (EmitterError, PayloadError) as exc:
        manager.close(timeout)
        raise click.ClickException(str(exc)) from exc
    except (click.UsageError, KeyboardInterrupt):
        manager.close(timeout)
        raise
    # What is lost, and why, the manager has told the log.
    return 0 if manager.close(timeout) else 1


def _terminated(number: int, _frame: FrameType | None) -> None:
    # Ends as a program does that has come to its end: what was emitted is delivered first.
    raise SystemExit(128 + number)


def _events(arguments: Sequence[str], is_text: bool) -> Iterator[tuple[Any, ...]]:
    """The arguments of each event."""
    read: Callable[[str], Any] = str if is_text else _from_json
    if arguments.count(STANDARD_INPUT) > 1:
        raise click.UsageError(f"{STANDARD_INPUT} stands for the standard input, and can be given once.")
    values = [text if text == STANDARD_INPUT else read(text) for text in arguments]
    if STANDARD_INPUT not in arguments:
        return iter([tuple(values)])
    place = arguments.index(STANDARD_INPUT)
    lines = _lines() if is_text else ((number, line) for number, line in _lines() if not line.isspace())
    return ((*values[:place], value, *values[place + 1 :]) for value in _values(lines, read))


def _valid(text: str) -> str:
    """Arguments of a shell may be any bytes, which Python keeps as lone surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _lines() -> Iterator[tuple[int, str]]:
    """The numbers and texts of the lines of the standard input, as they come."""
    if sys.stdin is None:
        raise click.UsageError("the standard input is closed.")
    try:
        for number, line in enumerate(sys.stdin.buffer, 1):
            text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "replace")
            # Some programs begin what they write with a byte order mark.
            yield number, text.removeprefix("\ufeff") if number == 1 else text
    except OSError as exc:
        raise click.UsageError(f"the standard input cannot be read: {exc}") from exc


def _values(lines: Iterable[tuple[int, str]], read: Callable[[str], Any]) -> Iterator[Any]:
    for number, text in lines:
        if text:
            try:
                value = read(text)
            except click.UsageError as exc:
                raise click.UsageError(f"line {number}: {exc.message}") from exc
            yield value


def _from_json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except ValueError as exc:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise click.UsageError(
            f"{shown!r} is not JSON ({exc}). Text needs quotes of its own inside those of the shell: "
            f"""'"hello"'; or use --text."""
        ) from exc
    except RecursionError as exc:
        raise click.UsageError("this JSON is nested too deeply.") from exc


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is too large a number")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
