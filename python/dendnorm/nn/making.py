"""How a layer comes to be: with connections that are drawn or given, or with the weights of a dense one.

Each function fills a bare layer: a ``SparseLayer`` whose ``nn.Module.__init__`` alone has run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._arguments import connections, features, seed_of, value_dtype
from ..ops import library as _ops
from .norms import Norm, resolve
from .pattern import Pattern
from .spread import is_spread, refuse_spread

__all__ = ["bare", "check_sizes", "densified", "fill", "fill_from_dense", "start"]


def bare(cls: type) -> Any:
    """A layer of a class, without anything in it."""
    layer: Any = object.__new__(cls)
    nn.Module.__init__(layer)
    return layer


def check_sizes(pattern: object, density: object, nnz: object) -> Pattern:
    """A pattern that is given instead of a number of connections."""
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a dendnorm.Pattern, got {type(pattern).__name__}")
    if density is not None or nnz is not None:
        raise ValueError("density and nnz must be left out where a pattern is given, which has a number of connections")
    _ops.check_view(
        *pattern[:2], pattern.in_features, pattern.out_features, "pattern.ccol_indices", "pattern.row_indices"
    )
    return pattern


def start(
    layer: Any,
    inputs: int,
    outputs: int,
    count: int,
    pattern: Pattern | None,
    norm: Norm | str | None,
    bias: object,
    seed: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    """A fresh layer of ``count`` among ``outputs`` x ``inputs`` positions, drawn from a seed or those of a pattern."""
    if not isinstance(bias, bool):
        raise TypeError(f"bias must be a bool, got {bias!r}")
    norm, dtype = resolve(norm), value_dtype(dtype)
    if device is None and pattern is not None:
        device = pattern.perm.device
    device = torch.get_default_device() if device is None else torch.device(device)
    seed = seed_of(seed) if seed is not None or device.type != "meta" else 0
    layer._allocate(inputs, outputs, count, bias, device, dtype)
    norm.initialise(outputs, count, dtype, device)
    layer.norm = norm
    if device.type != "meta":
        layer._draw(seed, pattern)


def fill(
    layer: Any, pattern: Pattern, effective: torch.Tensor, bias: torch.Tensor | None, norm: Norm | str | None
) -> None:
    """A layer with these effective weights, in column order. Touches `norm` only when nothing can go wrong."""
    norm, dtype = resolve(norm), torch.float64 if effective.dtype == torch.float64 else torch.float32
    rows = pattern.out_features
    layer._allocate(pattern.in_features, rows, pattern.nnz, bias is not None, effective.device, dtype)
    norm.check(rows, dtype, effective.device)
    values, excitability = norm.raw_values(effective.detach(), pattern.row_indices, rows)
    taken = norm.excitability is not None
    norm.initialise(rows, pattern.nnz, dtype, effective.device)
    layer.norm = norm
    with torch.no_grad():
        layer.weight.copy_(values)
        if bias is not None:
            layer.bias.copy_(bias)
        if excitability is not None and norm.excitability is not None and not taken:
            norm.excitability.copy_(excitability)
        layer._write(pattern)


def fill_from_dense(layer: Any, name: str, dense: Any, density: float | None, norm: Norm | str | None) -> None:
    """A layer with the largest weights of a dense one, whose ``weight`` is (M, *) and flattens to (M, N).

    Args:
        name: what messages call the dense layer.
        density: the share that is kept, of equals the later in column order; None: what is not 0.

    Raises:
        TypeError, ValueError: as ``SparseLinear.from_dense``.
    """
    if is_spread(dense.weight):
        raise ValueError(f"{name}.weight must be whole, got a DTensor: make layers sparse before fully_shard")
    matrix = dense.weight.detach().flatten(1)
    if not matrix.is_floating_point():
        raise TypeError(f"{name}.weight must be of a real floating dtype, got {matrix.dtype}")
    rows, cols = matrix.shape
    features(f"{name}.in_features", cols), features(f"{name}.out_features", rows)
    count = None if density is None else connections(density, None, rows * cols)
    if matrix.device.type == "meta":
        if count is None:
            raise ValueError(f"density must be given for a {name} on the meta device, which has no values, got None")
        dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
        start(layer, cols, rows, count, None, norm, dense.bias is not None, None, "meta", dtype)
    else:
        ccol, row, effective = _ops.largest_connections(matrix, count, f"{name}.weight")
        fill(layer, Pattern._of(ccol, row, rows), effective, dense.bias, norm)
    for mine, theirs in ((layer.weight, dense.weight), (layer.bias, dense.bias)):
        if mine is not None:
            mine.requires_grad_(theirs.requires_grad)
    if not isinstance(norm, Norm):  # one of its own, and a factor of the weight
        layer.norm.requires_grad_(dense.weight.requires_grad)
    layer.train(dense.training)


@torch.no_grad()
def densified(layer: Any, kind: type[nn.Module], *sizes: Any, **options: Any) -> Any:
    """A dense layer of a kind and sizes with a layer's effective weights and a copy of its bias, in its mode."""
    weight, bias = layer.weight, layer.bias
    refuse_spread(f"{layer}", weight)
    dense: Any = nn.utils.skip_init(
        kind, *sizes, bias=bias is not None, device=weight.device, dtype=weight.dtype, **options
    )
    if not weight.is_meta:
        dense.weight.zero_().flatten(1)[layer.pattern.edges()] = layer.effective_weight()
        if bias is not None:
            dense.bias.copy_(bias)
    return dense.train(layer.training)
