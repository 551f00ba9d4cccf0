"""What other libraries bring, told from what somebody has put in its place before we were imported."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["stock"]


def stock(function: Any, module: ModuleType) -> Callable[..., Any] | None:
    """The function, if it was defined in this module.

    Not by its `__module__`, which what wraps it takes over.
    """
    own: Callable[..., Any] | None = function if getattr(function, "__globals__", None) is vars(module) else None
    return own
