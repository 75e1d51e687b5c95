"""Sparse layers with dendritic normalisation for PyTorch.

w_i = (e_i / (n_i^a ||v_i||_p^b)) v_i, after A. D. Bird and H. Cuntz, "Dendritic normalisation improves learning in
sparsely connected artificial neural networks", PLOS Comput Biol 17(8): e1009202, 2021.
"""

from __future__ import annotations

from pathlib import Path as _Path

from . import _batching, _flops, analysis, checkpoint, drop, functional, grow, norms, schedules  # noqa: F401
from .activations import SReLU
from .checkpoint import load, save
from .convert import densities, param_groups, sparsify
from .functional import Pattern
from .layers import SparseLinear
from .norms import Norm
from .resizing import resize
from .rewiring import SET
from .summaries import summary

__all__ = ["SET", "Norm", "Pattern", "SReLU", "SparseLinear", "analysis", "checkpoint", "densities", "drop",
           "functional", "grow", "load", "norms", "param_groups", "resize", "save", "schedules", "sparsify",
           "summary"]  # fmt: skip


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dendnorm")
    except PackageNotFoundError:  # run from a source tree
        return "0+unknown"


__version__ = _version()

# For C++: cmake -DCMAKE_PREFIX_PATH="<this>;<torch.utils.cmake_prefix_path>", then find_package(dendnorm REQUIRED).
cmake_prefix_path = str(_Path(__file__).parent / "share" / "cmake")
