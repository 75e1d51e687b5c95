"""Layers, patterns and norms."""

from . import activations, conv, frozen, functional, linear, norms, pattern, slab
from .activations import SReLU
from .conv import SparseConv1d, SparseConv2d
from .frozen import FrozenLinear
from .linear import SparseLinear
from .norms import Norm
from .pattern import Pattern
from .slab import Slab, batch_innermost

__all__ = ["FrozenLinear", "Norm", "Pattern", "SReLU", "Slab", "SparseConv1d", "SparseConv2d", "SparseLinear",
           "activations", "batch_innermost", "conv", "frozen", "functional", "linear", "norms", "pattern",
           "slab"]  # fmt: skip
