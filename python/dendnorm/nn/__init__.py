"""Layers, patterns and norms."""

from . import activations, frozen, functional, linear, norms, pattern
from .activations import SReLU
from .frozen import FrozenLinear
from .linear import SparseLinear
from .norms import Norm
from .pattern import Pattern

__all__ = ["FrozenLinear", "Norm", "Pattern", "SReLU", "SparseLinear", "activations", "frozen", "functional", "linear",
           "norms", "pattern"]  # fmt: skip
