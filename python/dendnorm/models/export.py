"""Programs that run where dendnorm is not installed: the layer's ops decomposed into PyTorch's own, and ONNX's."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from ..nn import plain
from ..ops import library as _ops

__all__ = ["decompositions"]


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """A decomposition table for ``torch.export``: PyTorch's own, and dendnorm's ops in terms of it.

        program = torch.export.export(model, (x,)).run_decompositions(dendnorm.decompositions())
        torch.export.save(program, "model.pt2")  # runs where dendnorm is not installed

    The program keeps the nnz values and their indices; a call makes the dense weight from them and multiplies or
    convolves by it. Right for every norm, for neurons without connections and for 16-bit activations.
    ``torch.onnx.export`` decomposes so by itself.

    Returns:
        for each op a function that computes it with PyTorch's ops; a fresh dict, to be changed at will.
    """
    table: dict[OpOverload, Callable[..., Any]] = dict(torch.export.default_decompositions())
    return table | _OURS


_OURS: dict[OpOverload, Callable[..., Any]] = {
    _ops.sparse_linear: plain.sparse_linear,
    _ops.sparse_conv2d: plain.sparse_conv2d,
    _ops.effective_weight: plain.effective_weight,
    _ops.frozen_linear: plain.frozen_linear,
}


def _register() -> None:
    """Let ``torch.onnx.export`` find the decompositions, which looks among those that ``torch._decomp`` names."""
    try:
        from torch._decomp import decomposition_table, meta_table
    except ImportError:  # private names, which may move
        return
    # Not into the table itself: there Inductor would find them, which calls the ops as they are, and which refuses
    # an op called so that has a decomposition wherever the environment says CI.
    torch._decomp.decomposition_table = ChainMap[Any, Any](_OURS, decomposition_table)  # type: ignore[assignment]
    for op in _OURS:
        # Fake tensors of unknown size would be sent through it, too, unless shapes have a rule in Python.
        meta_table[op] = op


_register()
