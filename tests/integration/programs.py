"""Real processes for tests: started with a clean environment, read line by line, never left behind."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import psutil

from tests.ports import reserved_port

__all__ = ["Program", "gone", "running", "until"]

SECONDS = 30.0

# What the machine is set up with is not meant for a test.
_UNWANTED = re.compile(r"MESH_\w+|HOST|PORT|CHAT_NAME|METRICS_\w+")


class Program:
    """A process and what it has written. Both of its outputs are one here."""

    def __init__(self, command: Sequence[str], **variables: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not _UNWANTED.fullmatch(name)}
        self.process = subprocess.Popen(
            command,
            env={**kept, "PYTHONUNBUFFERED": "1", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_for(self, pattern: str) -> str:
        """Wait until it has written this; return the first group, or all of it."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self.output)

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reader.is_alive(), SECONDS)
        match = found()
        assert match, f"no {pattern!r} in:\n{self.output}"
        return match[1] if match.re.groups else match[0]

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait until it has ended; return its exit code."""
        code = self.process.wait(seconds)
        self._reader.join(SECONDS)
        return code

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        self.process.stdout.close()


@contextmanager
def running(command: Sequence[str], **variables: str) -> Iterator[Program]:
    """A `Program` that is ended on the way out."""
    with reserved_port() as port:
        # Those that are told of no discovery service would find others that run here by chance.
        program = Program(command, **{"MESH_EMBEDDED_PORT": str(port), **variables})
        try:
            yield program
        finally:
            program.end()


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Whether none of them runs any more."""
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that other processes make true."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.02)
