"""`Emitter`: what a manager publishes through in a process that serves no clients.

Rules:

- Nothing happens before the first use: importing and constructing open no socket and start no thread.
- A fork has a uid and a thread of its own, from its first use on. What waited in the parent stays the parent's.
- A process that ends without `close` still waits a few seconds for what it has published, and says what it loses.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import secrets
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..cluster.queries import MakeData
from ..cluster.requests import Take
from ..config import MeshConfig
from ..errors import EmitterError
from ..net.mesh import PeerInfo
from ..node import Node, new_uid
from ..protocol import messages
from ..protocol.messages import MessageType
from .courier import Courier
from .native import native_sleep, pause
from .questions import Question

__all__ = ["Emitter"]

EXIT_SECONDS = 5.0
"""How long a process that ends waits for what it has published."""
_COURIER = "courier"


class Emitter(Node):
    """What a `Node` is to a process that serves clients. All methods may be called from any thread or greenlet.

    Args:
        config: valid options.
        logger: where to report.

    Attributes:
        uid: 16 hex digits, new at every start and in every fork.
    """

    def __init__(self, config: MeshConfig, logger: logging.Logger) -> None:
        super().__init__(config, logger, dict)
        # One at the most. A dictionary, for whoever is first to put it there is so without a lock: a signal handler may
        # have interrupted another use of the emitter, the first one included.
        self._present: dict[str, Courier] = {}

    @property
    def _courier(self) -> Courier | None:
        return self._present.get(_COURIER)

    # ------------------------------------------------------------------ publishing

    def publish(self, kind: MessageType, namespace: str, data: dict[str, Any]) -> None:
        """Publish a message to all nodes. Returns when it is retained here (see `Courier.publish`).

        Raises:
            PayloadError: it is too large, or cannot be encoded.
            EmitterError: no node takes anything and there is no more room, or this emitter is closed.
        """
        courier = self._running()
        courier.publish(messages.encode_anywhere(kind, courier.uid, namespace, data), namespace)

    def expect(self, callback: Callable[..., object]) -> str:
        """Make ready for clients' acknowledgements of a broadcast.

        Returns:
            The request id that the broadcast must carry.
        """
        return self._running().calls.open(callback, monotonic())

    def expect_no_more(self, request_id: str) -> None:
        """The broadcast has not been published."""
        courier = self._courier
        if courier is not None:
            courier.calls.ended(request_id)

    def flush(self, timeout: float) -> bool:
        """Wait until every node has what was published.

        Returns:
            Whether that is so.
        """
        courier = self._courier
        return courier is None or courier.flush(timeout)

    def ask(self, kind: MessageType, namespace: str, make_data: MakeData, take: Take, timeout: float) -> Question:
        """Ask the node that is linked, now or within the timeout (see `Queries.ask`). Never waits.

        Raises:
            PayloadError: it is too large, or cannot be encoded.
            EmitterError: this emitter is closed.
        """
        courier = self._running()
        data = make_data(secrets.token_hex(8))
        return courier.question(kind, messages.encode_anywhere(kind, courier.uid, namespace, data), take, timeout)

    # ------------------------------------------------------------------ the node

    @property
    def linked_to(self) -> PeerInfo | None:
        """The node that it is linked to."""
        return None if self._courier is None else self._courier.node

    def wait_for_node(self, timeout: float | None) -> bool:
        """Start, and wait for the link to a node; without end if `timeout` is None."""
        return self._running().wait_for_node(timeout)

    # ------------------------------------------------------------------ life

    def start(self, codec: str = "") -> None:  # noqa: ARG002  # every node reads what emitters write
        """Start, also after `stop`. Without it the first use does."""
        self.is_stopped = False
        self._running()

    def _running(self) -> Courier:
        courier = self._courier
        if courier is None:
            return self._begin()
        # The first use may have been interrupted on its way there.
        courier.start()
        return courier

    def _begin(self) -> Courier:
        self._check_not_stopped()
        _living.add(self)
        _hook()
        _hook_process(os.getpid())
        uid = new_uid() if self._was_started else self.uid
        courier = self._present.setdefault(_COURIER, Courier(self.config, uid, self._logger))
        self._was_started, self.uid = True, courier.uid
        if self.is_stopped:
            # `close` has come in between, and may have found none.
            self.close(0.0)
        self._check_not_stopped()
        courier.start()
        courier.wait_for_threads()
        return courier

    def _check_not_stopped(self) -> None:
        if self.is_stopped:
            raise EmitterError("this write_only manager is closed; nobody gets the message, or is asked")

    def stop(self, timeout: float) -> bool:
        """`close`, as nodes call it."""
        return self.close(timeout)

    def close(self, timeout: float, wait: Callable[[float], None] = pause) -> bool:
        """Take no more, wait until every node has what was published, and end.

        Returns:
            Whether every node has.
        """
        self.is_stopped = True
        courier = self._present.pop(_COURIER, None)
        if courier is None:
            return True
        _living.discard(self)
        lost, trouble = courier.close(timeout, wait)
        if lost:
            many = "1 message" if lost == 1 else f"{lost} messages"
            self._logger.error(
                "%s may be lost: this process stopped before a node had passed on everything (%s)", many, trouble
            )
        return not courier.take_refused() and not lost

    def forked(self) -> None:
        """The process is a fork: nothing that the parent opened or retains belongs to it."""
        self.uid = new_uid()
        courier = self._present.pop(_COURIER, None)
        _living.discard(self)
        if courier is not None:
            courier.forget()


# ---------------------------------------------------------------------- the end of the process

_living: set[Emitter] = set()
"""Those that have started and were not closed: nobody else may hold them, and they may have something to deliver."""


def _at_exit() -> None:
    for emitter in list(_living):
        # Not `pause`: the application's greenlets have had their time, and its event loop may be gone.
        emitter.close(EXIT_SECONDS, native_sleep)


def _after_fork() -> None:
    for emitter in list(_living):
        emitter.forked()


@functools.cache
def _hook() -> None:
    """Install what forks inherit, once."""
    os.register_at_fork(after_in_child=_after_fork)
    atexit.register(_at_exit)


@functools.cache
def _hook_process(_pid: int) -> None:
    """Install what each process needs of its own, once for each."""
    # Processes of these two end without `atexit`, and have hooks of their own.
    for name in ("multiprocessing.util", "billiard.util"):
        if name in sys.modules:
            sys.modules[name].Finalize(None, _at_exit, exitpriority=100)
