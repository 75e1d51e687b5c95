"""Whole models: from dense to sparse, parameter groups, what they cost."""

from .groups import param_groups
from .sparsify import densities, sparsify
from .summary import ModuleSummary, Summary, summary

__all__ = ["ModuleSummary", "Summary", "densities", "param_groups", "sparsify", "summary"]
