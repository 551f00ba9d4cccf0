"""Becomes a program that does not outlive its parent: `python -m benchmarks.guard COMMAND [ARGUMENT...]`.

As `gevent_mesh.demo.child` does for modules of Python: the parent holds the other end of our standard input, and the
system closes that however the parent ends. A process of its own waits for it; this one becomes the command, so that its
id, its CPU time and its signals are the command's.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run `sys.argv[1:]`."""
    guarded = os.getpid()
    if os.fork():
        os.execvp(sys.argv[1], sys.argv[1:])
    # What is said is the command's alone: its end must be seen.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    while os.read(0, 4096):
        pass
    if os.getppid() == guarded:
        os.kill(guarded, signal.SIGTERM)


if __name__ == "__main__":
    main()
