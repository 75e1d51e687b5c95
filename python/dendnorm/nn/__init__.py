"""Layers, patterns and norms."""

from . import activations, conv, functional, linear, norms, pattern
from .activations import SReLU
from .conv import SparseConv1d, SparseConv2d
from .linear import SparseLinear
from .norms import Norm
from .pattern import Pattern

__all__ = ["Norm", "Pattern", "SReLU", "SparseConv1d", "SparseConv2d", "SparseLinear", "activations", "conv",
           "functional", "linear", "norms", "pattern"]  # fmt: skip
