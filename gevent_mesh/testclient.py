"""Flask-SocketIO's test client with this package's manager.

The test client refuses to work with any `PubSubManager`, because a unit test should not need a broker. There is no
broker here, and a manager that is not serving opens no socket: the refusal is lifted for ours, and for ours only.
"""

from __future__ import annotations

import sys
from typing import Any

from socketio.pubsub_manager import PubSubManager

__all__ = ["allow"]


def allow(manager_class: type) -> None:
    """Let the test client take `manager_class`. Does nothing where Flask-SocketIO is not in use."""
    module = sys.modules.get("flask_socketio.test_client")
    if module is None or getattr(module, "PubSubManager", None) is not PubSubManager:
        return

    class NeedsBroker(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, PubSubManager) and not isinstance(instance, manager_class)

    module.PubSubManager = NeedsBroker("PubSubManager", (), {})  # type: ignore[attr-defined]  # a module of another package
