"""Layers, patterns and norms."""

from . import activations, functional, linear, norms, pattern
from .activations import SReLU
from .linear import SparseLinear
from .norms import Norm
from .pattern import Pattern

__all__ = ["Norm", "Pattern", "SReLU", "SparseLinear", "activations", "functional", "linear", "norms", "pattern"]
