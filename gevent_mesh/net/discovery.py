"""The client of a discovery service (being written)."""

from __future__ import annotations


class DiscoveryClient:
    """Placeholder until the real one is here."""
