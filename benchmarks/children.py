"""Processes that are started, asked for their CPU time, and ended, each by its own id."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import psutil

__all__ = ["MISSING", "BenchmarkError", "Child", "children", "end_on_signals", "guarded", "python"]

TERMINATE_SECONDS = 5.0
LOG_TAIL_CHARS = 2000
MISSING = 2
ROOT = Path(__file__).resolve().parent.parent


class BenchmarkError(Exception):
    """The measurement cannot go on.

    Attributes:
        exit_code: `MISSING` when something is missing on this machine, else 1.
    """

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module so that it ends when we do, even when we are killed."""
    return [sys.executable, "-m", "gevent_mesh.demo.child", module, *arguments]


def guarded(command: Sequence[str]) -> list[str]:
    """The same for a program that is no Python."""
    return [sys.executable, "-m", "benchmarks.guard", *command]


def end_on_signals() -> None:
    """SIGTERM, and a terminal that is closed, end us as an exception does, so that `children` ends all processes."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))


class Child:
    """One process. Its standard output is read line by line; its errors are kept for when it fails."""

    def __init__(self, name: str, command: Sequence[str], errors: IO[bytes]) -> None:
        self.name = name
        self._errors = errors
        self._output = b""
        # A session of its own: Ctrl-C in the terminal reaches only us, and we end the children.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            cwd=ROOT,
            start_new_session=True,
        )
        self._times = psutil.Process(self._process.pid)

    def line(self, pattern: str, seconds: float) -> re.Match[str]:
        """Wait for a line of its output; the ones before it are skipped.

        Raises:
            BenchmarkError: it ended, or said nothing of the kind in time.
        """
        deadline = time.monotonic() + seconds
        stdout = self._process.stdout
        assert stdout is not None
        while True:
            while b"\n" in self._output:
                text, _, self._output = self._output.partition(b"\n")
                if match := re.search(pattern, text.decode("utf-8", "replace")):
                    return match
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BenchmarkError(f"{self.name} was expected to say {pattern!r} within {seconds:.0f} s{self._log()}")
            data = stdout.read(1 << 16)
            if not data:
                raise BenchmarkError(f"{self.name} ended with code {self._process.wait()}{self._log()}")
            self._output += data

    def tell(self, line: str) -> None:
        """Write a line to its standard input.

        Raises:
            BenchmarkError: it has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise BenchmarkError(f"{self.name} ended with code {self._process.wait()}{self._log()}") from None

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        times = self._times.cpu_times()
        return float(times.user + times.system)

    def signal(self, number: int) -> None:
        """Send it a signal; nothing happens when it has ended."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def end(self, deadline: float) -> None:
        """Wait for its end; kill it when that takes too long."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _log(self) -> str:
        self._errors.seek(0)
        tail = self._errors.read().decode("utf-8", "replace").strip()[-LOG_TAIL_CHARS:]
        return f":\n{tail}" if tail else ""


class Children:
    """Starts processes, and ends all of them."""

    def __init__(self, resources: contextlib.ExitStack) -> None:
        self._resources = resources
        self._children: list[Child] = []

    def start(self, name: str, command: Sequence[str]) -> Child:
        errors = self._resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
        with _signals_held():
            self._children.append(Child(name, command, errors))
        return self._children[-1]

    def folder(self) -> str:
        """A folder that is gone afterwards."""
        return self._resources.enter_context(tempfile.TemporaryDirectory(prefix="gevent-mesh-bench-"))

    def end(self) -> None:
        for child in reversed(self._children):
            child.terminate()
        deadline = time.monotonic() + TERMINATE_SECONDS
        for child in reversed(self._children):
            child.end(deadline)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP wait for the end of the block: a process that nobody knows of would be left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    come: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: come.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for came in come:
        signal.raise_signal(came)


@contextlib.contextmanager
def children() -> Iterator[Children]:
    """All processes that are started inside of the block end with it, whatever happens."""
    with contextlib.ExitStack() as resources:
        started = Children(resources)
        try:
            yield started
        finally:
            started.end()
