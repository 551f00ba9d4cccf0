"""What many tests need: waiting for a condition with a deadline, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import gevent

__all__ = ["eventually"]

T = TypeVar("T")

_POLL_SECONDS = 0.005


def eventually(predicate: Callable[[], T], seconds: float = 5.0) -> T:
    """Wait until `predicate` returns something true, and return that.

    The other greenlets run meanwhile. An AssertionError inside of the predicate means "not yet".

    Raises:
        AssertionError: `seconds` have passed; the predicate's own assertion, if it made one.
    """
    deadline = time.monotonic() + seconds
    while True:
        problem: AssertionError | None = None
        try:
            value = predicate()
            if value:
                return value
        except AssertionError as error:
            problem = error
        if time.monotonic() > deadline:
            raise problem or AssertionError(f"not so within {seconds} s; last value: {value!r}")
        gevent.sleep(_POLL_SECONDS)
