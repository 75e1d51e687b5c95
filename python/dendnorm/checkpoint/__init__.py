"""Training states as files that hold nothing but tensors and JSON."""

from .checkpoint import load, save

__all__ = ["load", "save"]
