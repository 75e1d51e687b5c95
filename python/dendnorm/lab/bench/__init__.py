"""A training step against dense and sparse peers on this machine."""

from . import conv
from .contenders import CONTENDERS, Unavailable
from .roofline import Roofline
from .runner import RESULTS, crossover, run, run_conv
from .shape import SHAPES, Shape
from .tables import conv_table, table
from .timing import measure, measure_rewiring, memory

__all__ = ["CONTENDERS", "RESULTS", "SHAPES", "Roofline", "Shape", "Unavailable", "conv", "conv_table", "crossover",
           "measure", "measure_rewiring", "memory", "run", "run_conv", "table"]  # fmt: skip
