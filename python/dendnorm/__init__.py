"""Sparse layers with dendritic normalisation for PyTorch.

w_i = (e_i / (n_i^a ||v_i||_p^b)) v_i, after A. D. Bird and H. Cuntz, "Dendritic normalisation improves learning in
sparsely connected artificial neural networks", PLOS Comput Biol 17(8): e1009202, 2021.
"""

from __future__ import annotations

import importlib as _importlib
import sys as _sys
from pathlib import Path as _Path
from typing import Any as _Any

# _native before all others: it loads the compiled library for this PyTorch.
from . import _native, analysis, checkpoint  # noqa: F401
from . import ops as _ops  # noqa: F401  registers the rules of vmap and of the FLOP counter
from ._moved import register as _register
from .checkpoint import load, save
from .models import decompositions, densify, densities, freeze, param_groups, sparsify, summary
from .nn import (
    FrozenLinear,
    Norm,
    Pattern,
    Slab,
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
    SReLU,
    batch_innermost,
    functional,
    norms,
)
from .rewiring import SET, RigL, drop, grow, resize, schedules

# Loaded when first named.
_LAZY = {"integrations": ".integrations", "lab": ".lab", "patterns": ".nn.patterns", "plots": ".analysis.pictures"}

__all__ = ["SET", "FrozenLinear", "Norm", "Pattern", "RigL", "SReLU", "Slab", "SparseConv1d", "SparseConv2d",
           "SparseLinear", "analysis", "batch_innermost", "checkpoint", "decompositions", "densify", "densities",
           "drop", "freeze", "functional", "grow", "load", "norms", "param_groups", "resize", "save", "schedules",
           "sparsify", "summary"]  # fmt: skip

_register()
del _register


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        return _importlib.import_module(_LAZY[name], __name__)
    if f"{__name__}.{name}" in _sys.modules:  # a module's place in version 0.1
        return _sys.modules[f"{__name__}.{name}"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY, "__version__", "cmake_prefix_path"])


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dendnorm")
    except PackageNotFoundError:  # run from a source tree
        return "0+unknown"


__version__ = _version()

# For C++: cmake -DCMAKE_PREFIX_PATH="<this>;<torch.utils.cmake_prefix_path>", then find_package(dendnorm REQUIRED).
cmake_prefix_path = str(_Path(__file__).parent / "share" / "cmake")
