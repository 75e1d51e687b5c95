"""The figures and the table of Bird and Cuntz (2021), each trained, measured and drawn anew."""

from ..search import Grid
from .catalogue import EXPERIMENTS, Experiment, Panel
from .runner import collect, run
from .tables import table

__all__ = ["EXPERIMENTS", "Experiment", "Grid", "Panel", "collect", "run", "table"]
