"""The values of new connections."""

from __future__ import annotations

import torch

from ..nn.layer import SparseLayer
from ..ops import library as _ops

__all__ = ["STARTS", "check_start", "fresh_values"]

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
    return drawn if start == "normal" else drawn.mul_(_ops.spread(layer.weight.detach()).to(device, dtype))
