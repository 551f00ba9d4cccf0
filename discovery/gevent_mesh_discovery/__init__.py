"""The discovery service of gevent-mesh: tells nodes of each other, and is never on the path of a message.

::

    registry.py     who is registered, leases, changes (pure)
    app.py          DiscoveryServer: WebSocket members, /healthz, /roster
    metrics.py      Prometheus figures, only loaded when asked for
    __main__.py     command line, environment, signals

A node keeps its links when discovery goes away, and registers again when it is back; so one instance is enough, and
several independent ones need no consensus: the nodes register with each and take the union.
"""

from __future__ import annotations

from .app import DiscoveryServer

__all__ = ["DiscoveryServer"]
