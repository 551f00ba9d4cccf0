"""Prometheus figures of a discovery server, under the names of the Node package where it has such a figure, so that its
dashboards fit.

Importing this module imports prometheus-client: do so only when metrics were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gevent_mesh.net.listener import Listener, StrangerTicket
from gevent_mesh.net.transport import Transport

from .app import DiscoveryServer

__all__ = ["metrics_listener"]

_PREFIX = "socketio_mesh_discovery_"


class _Figures(Collector):
    """Reads the server's counters when somebody scrapes."""

    def __init__(self, server: DiscoveryServer) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        counters = self._server.counters
        yield GaugeMetricFamily(f"{_PREFIX}servers_registered", "Current roster size.", value=self._server.registered)
        for name, text, value in (
            ("registrations", "Lifetime registrations.", counters.registrations),
            ("disconnects", "Lifetime disconnects.", counters.disconnects),
            ("roster_broadcasts", "Lifetime roster pushes.", counters.roster_broadcasts),
            ("takeovers_refused", "Registrations under a name that belongs to another node.", counters.taken),
        ):
            # prometheus-client adds the suffix _total.
            yield CounterMetricFamily(f"{_PREFIX}{name}", text, value=value)


def metrics_listener(server: DiscoveryServer, host: str, port: int) -> Listener:
    """A listener, not yet started, that answers ``GET /metrics`` under the same limits as any other port here."""
    registry = CollectorRegistry()
    registry.register(_Figures(server))
    return Listener(
        host, port, on_websocket=_refuse, http_app=make_wsgi_app(registry), require_mesh_header=True, tls=server.tls
    )


def _refuse(_transport: Transport, _ticket: StrangerTicket) -> None:
    """Nothing to say over WebSocket: returning ends the connection."""
