"""Rewiring: SET and its relatives, their rules and schedules, and another number of connections."""

from . import drop, grow, observing, reports, schedules
from .reports import LayerReport, RewireReport
from .resize import resize
from .rigl import RigL
from .set import SET

__all__ = ["SET", "LayerReport", "RewireReport", "RigL", "drop", "grow", "observing", "reports", "resize", "schedules"]
