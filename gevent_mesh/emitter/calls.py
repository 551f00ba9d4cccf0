"""Callbacks: what clients acknowledge, on its way back to the function that an emit was given.

Rules:

- Requests are opened and freed without a lock, by single operations of a dictionary, which Python does as a whole: a
  signal handler may have interrupted another emit.
- A callback never runs in the network thread. It runs in the event loop that the emit came from where that has
  greenlets, else in a native thread, one after the other.
- A request is freed when all that were asked have answered, when its time is over, or when there are too many.
- Answers are numbered by the relay, which says them again over a new link: a repeat is dropped.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent._hub_local import get_hub_if_exists

from .native import Lock, has_greenlets, make_lock, start_thread

__all__ = ["Calls"]

logger = logging.getLogger(__name__)

MAX_OPEN = 10_000
"""Requests that may be open; above it the oldest is freed."""
MAX_WAITING = 10_000
"""Answers that may wait for slow callbacks; what comes above it is dropped, with a line in the log."""

Callback = Callable[..., object]


@dataclass(slots=True)
class _Call:
    callback: Callback
    hub: Any
    deadline: float
    answers: int = 0


@dataclass(slots=True)
class _Runner:
    """Runs callbacks in a native thread, which is there only while there is something to run."""

    _lock: Lock = field(default_factory=make_lock)
    _waiting: deque[tuple[Callback, list[Any]]] = field(default_factory=deque)
    _is_running: bool = False

    def run(self, callback: Callback, arguments: list[Any]) -> None:
        with self._lock:
            is_full = len(self._waiting) >= MAX_WAITING
            if not is_full:
                self._waiting.append((callback, arguments))
            starts = not self._is_running and not is_full
            self._is_running = self._is_running or starts
        if is_full:
            logger.error("a client's acknowledgement is dropped: callbacks are slower than answers come")
        elif starts:
            start_thread(self._run)

    def _next(self) -> tuple[Callback, list[Any]] | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._is_running = False
            return None

    def _run(self) -> None:
        while (found := self._next()) is not None:
            _call(*found)


def _call(callback: Callback, arguments: list[Any]) -> None:
    try:
        callback(*arguments)
    except Exception:  # the top of a thread
        logger.exception("the callback of an emit failed")


class Calls:
    """The emits whose clients are to acknowledge. Opened from any thread; all else is for the network thread.

    Args:
        timeout_seconds: how long one is kept.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._open: dict[str, _Call] = {}
        self._runner = _Runner()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, callback: Callback, now: float) -> str:
        """Expect answers.

        Returns:
            The request's id.
        """
        request_id = secrets.token_hex(8)
        hub = get_hub_if_exists() if has_greenlets() else None
        self._open[request_id] = _Call(callback, hub, now + self._timeout_seconds)
        if len(self._open) > MAX_OPEN:
            for oldest in list(self._open)[:-MAX_OPEN]:
                self.ended(oldest)
        return request_id

    def answered(self, request_id: str, number: int, arguments: list[Any]) -> None:
        """The relay passes on what a client has answered."""
        call = self._open.get(request_id)
        if call is None or number <= call.answers:
            return
        call.answers = number
        self._start(call, arguments)

    def ended(self, request_id: str) -> None:
        """No more answers will come."""
        self._open.pop(request_id, None)

    def sweep(self, now: float) -> None:
        """Free what is overdue."""
        for request_id, call in list(self._open.items()):
            # All have the same time limit: behind the first that is in time all are.
            if now < call.deadline:
                return
            self.ended(request_id)

    def _start(self, call: _Call, arguments: list[Any]) -> None:
        if call.hub is not None:
            try:
                call.hub.loop.run_callback_threadsafe(gevent.spawn, _call, call.callback, arguments)
            except Exception:  # its thread is over, and the loop with it
                logger.debug("an event loop is gone; its callback runs in a thread", exc_info=True)
            else:
                return
        self._runner.run(call.callback, arguments)
