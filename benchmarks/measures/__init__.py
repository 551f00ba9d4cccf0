"""What is measured, one module each. The order is that of the table and of docs/performance.md."""

from __future__ import annotations

from ..measuring import Measure
from . import cluster

__all__ = ["MEASURES"]

MEASURES: dict[str, Measure] = {module.MEASURE.key: module.MEASURE for module in (cluster,)}
