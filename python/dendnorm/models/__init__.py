"""Whole models: from dense to sparse and back, parameter groups, what they cost, programs that run without dendnorm."""

from .densify import densify
from .export import decompositions
from .freeze import freeze
from .groups import param_groups
from .report import Replaced
from .sparsify import densities, sparsify
from .summary import ModuleSummary, Summary, summary

__all__ = ["ModuleSummary", "Replaced", "Summary", "decompositions", "densify", "densities", "freeze", "param_groups",
           "sparsify", "summary"]  # fmt: skip
