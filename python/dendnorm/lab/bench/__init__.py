"""A training step against dense and sparse peers on this machine."""

from .contenders import CONTENDERS, Unavailable
from .roofline import Roofline
from .runner import RESULTS, crossover, run
from .shape import SHAPES, Shape
from .tables import table
from .timing import measure, measure_rewiring, memory

__all__ = ["CONTENDERS", "RESULTS", "SHAPES", "Roofline", "Shape", "Unavailable", "crossover", "measure",
           "measure_rewiring", "memory", "run", "table"]  # fmt: skip
