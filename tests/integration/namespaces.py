"""Network namespaces: two hosts on one machine, and a cable between them. Linux, and root, only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Cable", "NoNamespaces", "cable", "inside", "present"]

_CLONE_NEWNET = 0x40000000

_entered: list[str] = []


class NoNamespaces(Exception):
    """This machine has none for us; the text says why."""


def present() -> str:
    """The namespace that we are in; empty for the machine's own."""
    return _entered[-1] if _entered else ""


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Be in a namespace: sockets that are made in the block belong to it, and so do processes that are started.

    An empty name means where we are.
    """
    if name in ("", present()):
        yield
        return
    with contextlib.ExitStack() as stack:
        outside = stack.enter_context(Path("/proc/thread-self/ns/net").open())
        there = stack.enter_context(Path("/run/netns", name).open())
        _enter(there.fileno())
        _entered.append(name)
        try:
            yield
        finally:
            _entered.pop()
            _enter(outside.fileno())


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Cable:
    """Two namespaces and what joins them.

    Attributes:
        ends: the names of the two.
        addresses: their IP addresses.
    """

    addresses = ("10.0.0.1", "10.0.0.2")

    def __init__(self) -> None:
        self.ends = (f"gevent-mesh-{os.getpid()}-a", f"gevent-mesh-{os.getpid()}-b")

    def lay(self) -> None:
        for end in self.ends:
            _ip("netns", "add", end)
            _ip("-n", end, "link", "set", "lo", "up")
        _ip("-n", self.ends[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.ends[1])
        for end, address in zip(self.ends, self.addresses, strict=True):
            _ip("-n", end, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", end, "link", "set", "cable", "up")

    def pull(self) -> None:
        """Nothing passes any more, and nobody is told."""
        _ip("-n", self.ends[0], "link", "set", "cable", "down")

    def plug_in(self) -> None:
        _ip("-n", self.ends[0], "link", "set", "cable", "up")

    def remove(self) -> None:
        for end in self.ends:
            with contextlib.suppress(NoNamespaces):
                _ip("netns", "delete", end)


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    """Two hosts and a cable, for the block.

    Raises:
        NoNamespaces: this machine does not let us.
    """
    if shutil.which("ip") is None:
        raise NoNamespaces("there is no `ip` command here")
    made = Cable()
    try:
        made.lay()
        yield made
    finally:
        made.remove()


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        raise NoNamespaces(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
