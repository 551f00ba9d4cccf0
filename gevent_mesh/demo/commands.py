"""What `gevent-mesh demo` and `gevent-mesh demo --check` do, from the first line on the screen to the exit code."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from .processes import CHAT_WITH_CHECK, ENDING, Child, Demo, DemoError, require_modules

__all__ = ["run_check", "run_demo"]

CHECK_SECONDS = 50.0  # for all of a check but the end of its processes ...
WATCHDOG_SECONDS = 58.0  # ... and if even that fails
POLL_SECONDS = 1.0
QUIET_SECONDS = 10.0  # without a terminal, the live line is printed at most this often


def run_demo(nodes: int, port: int) -> int:
    """Run the chat until Ctrl-C or SIGTERM.

    Returns:
        The exit code: 0, or 1 when a child died on its own, or 2 when a port is taken.
    """
    died = False
    try:
        with _first_signal_interrupts(), Demo(nodes, port) as demo:
            _welcome(demo)
            line = _LiveLine()
            while True:
                for child in demo.newly_dead():
                    died = True
                    line.end()
                    _report(child)
                if not any(server.running for server in demo.servers):
                    raise DemoError("No server is left.")
                line.show(str(demo.figures()))
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        click.echo("\nAll processes have ended.")
    except DemoError as error:
        _complain(error)
        return error.exit_code
    return int(died)


def run_check(nodes: int, port: int) -> int:
    """Prove with real clients that the servers share everything.

    Returns:
        The exit code: 0 when all is well, 1 when something failed or took too long, 2 when a port is taken.
    """
    started_at = time.monotonic()
    try:
        require_modules("requests", "websocket")  # what python-socketio's client is made of
        from .check import check

        with (
            _first_signal_interrupts(),
            _watchdog(Demo(nodes, port, chat=CHAT_WITH_CHECK), WATCHDOG_SECONDS) as demo,
            demo,
        ):
            try:
                return 0 if check(demo, started_at + CHECK_SECONDS) else 1
            finally:
                for child in demo.newly_dead():
                    _report(child)
    except KeyboardInterrupt:
        click.echo("\nInterrupted; all processes have ended.", err=True)
        return 1
    except DemoError as error:
        _complain(error)
        return error.exit_code


def _welcome(demo: Demo) -> None:
    alone = demo.nodes == 1
    click.echo("\nOne chat server:\n" if alone else f"\n{demo.nodes} chat servers, one conversation:\n")
    for server, url in zip(demo.servers, demo.urls, strict=True):
        click.echo(f"    {click.style(server.name, bold=True)}   {click.style(url, fg='cyan')}")
    click.echo(f"\nOpen {'it twice' if alone else 'two of them'}, side by side, and talk. Ctrl-C ends everything.\n")


def _report(child: Child) -> None:
    click.secho(f"\n!! {child.obituary()}", fg="red", err=True)
    if child.name == "discovery":
        click.echo("The links between the servers do not need it; only new servers could not join.", err=True)
    else:
        click.echo("It is not started again.", err=True)


def _complain(error: DemoError) -> None:
    click.secho(str(error), fg="red", err=True)


class _LiveLine:
    """One line that is written over and over on a terminal; elsewhere, a line when something has changed."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._shown = ""
        self._shown_at = float("-inf")

    def show(self, text: str) -> None:
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
            click.echo(f"\r\033[K{text[:width]}", nl=False)
        elif text != self._shown and time.monotonic() - self._shown_at > QUIET_SECONDS:
            click.echo(text)
            self._shown, self._shown_at = text, time.monotonic()

    def end(self) -> None:
        if self._terminal:
            click.echo()


# -- Signals and the last resort ---------------------------------------------------------------------------------------


@contextmanager
def _first_signal_interrupts() -> Iterator[None]:
    """The first signal that asks us to end does what Ctrl-C does; later ones must not disturb the clean-up."""

    def interrupt(_number: int, _frame: object) -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watchdog(demo: Demo, seconds: float) -> Iterator[Demo]:
    """Should a deadline have been forgotten somewhere: kill the children and end, with exit code 1."""

    def bite() -> None:
        sys.stderr.write(f"Something hangs: given up after {seconds:.0f} s.\n")
        sys.stderr.flush()
        demo.kill()
        os._exit(1)

    timer = threading.Timer(seconds, bite)
    timer.daemon = True
    timer.start()
    try:
        yield demo
    finally:
        timer.cancel()
