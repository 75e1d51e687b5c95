"""Training states as files that hold nothing but tensors and JSON."""

from .checkpoint import describe, load, save

__all__ = ["describe", "load", "save"]
