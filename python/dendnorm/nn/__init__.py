"""Layers, patterns and norms."""

from . import activations, conv, functional, linear, norms, pattern, slab
from .activations import SReLU
from .conv import SparseConv1d, SparseConv2d
from .linear import SparseLinear
from .norms import Norm
from .pattern import Pattern
from .slab import Slab, batch_innermost

__all__ = ["Norm", "Pattern", "SReLU", "Slab", "SparseConv1d", "SparseConv2d", "SparseLinear", "activations",
           "batch_innermost", "conv", "functional", "linear", "norms", "pattern", "slab"]  # fmt: skip
