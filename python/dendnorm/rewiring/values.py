"""The values of new connections."""

from __future__ import annotations

import torch

from ..nn.layer import SparseLayer
from ..ops import library as _ops

__all__ = ["STARTS", "check_start", "directed", "fresh_values"]

STARTS = ("matched", "normal", "zero")


def check_start(start: object) -> None:
    if start not in STARTS:
        raise ValueError(f'start must be "matched", "normal" or "zero", got {start!r}')


def fresh_values(
    layer: SparseLayer, k: int, seed: int, step: int, index: int, device: torch.device, start: str
) -> torch.Tensor:
    """v of k new connections: (k,), of the weight's dtype, on `device`.

    Args:
        layer: as it is before they come.
        seed, step, index: what the draw is a function of.
        start: "matched", normal with the spread that the layer's values have; "normal", from N(0, 1); "zero".
    """
    dtype = layer.weight.dtype
    if start == "zero":
        return torch.zeros(k, dtype=dtype, device=device)
    drawn = _ops.counter_normal(k, seed, step, index, dtype=dtype, device=device)
    return drawn if start == "normal" else drawn.mul_(_spread(layer, drawn))


def _spread(layer: SparseLayer, drawn: torch.Tensor) -> torch.Tensor:
    """That of the layer's values, to scale what was drawn: ()."""
    return _ops.spread(layer.weight.detach()).to(drawn.device, drawn.dtype)


def directed(
    layer: SparseLayer,
    rows: torch.Tensor,
    stays: torch.Tensor,
    grown: torch.Tensor,
    values: torch.Tensor,
    seed: int,
    step: int,
    index: int,
) -> torch.Tensor:
    """The values of new connections such that no neuron that has some has nothing but zeros, where b is not 0.

    Such a norm divides by the length of v: at 0 there is no direction and no derivative, and the neuron would be dead.
    Its new connections get values with the layer's spread, or a fresh layer's where all of its values are 0.

    Args:
        layer: as it is before they come, whole.
        rows: (nnz,), the neuron of each connection.
        stays: (nnz,), bool, which of them stay.
        grown: (k,), the neuron of each new one.
        values: (k,), theirs; on one device with the above.
        seed, step, index: as for ``fresh_values``.
    """
    if layer.norm.b == 0 or len(values) == 0:
        return values
    rows, grown = rows.long(), grown.long()
    size = torch.zeros(layer.out_features, dtype=torch.float64, device=values.device)
    kept = layer.weight.detach().to(values.device, torch.float64)
    size.index_add_(0, rows, torch.where(stays, kept.abs(), 0.0)).index_add_(0, grown, values.double().abs())
    lacking = size[grown] == 0
    if lacking.device.type == "cpu" and not bool(lacking.any()):  # elsewhere nobody waits to know
        return values
    drawn = fresh_values(layer, len(values), seed, step, index, values.device, "normal")
    matched = drawn * _spread(layer, drawn)
    usual = layer.norm.deviation(layer.nnz / layer.out_features)
    return torch.where(lacking, torch.where((matched == 0).all(), drawn * usual, matched), values)
