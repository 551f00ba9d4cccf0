"""Ports that tests name: nobody else is given one while a test uses it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

__all__ = ["reserved_port"]


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 that the system gives to nobody who asks for any, and on which whoever asks may listen."""
    with socket.socket() as holder:
        # Both sides say SO_REUSEADDR, and this one does not listen: then the kernel lets the other one.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
