"""The sparse layers of a model, by the weight that they share.

LibTorch's walk is csrc/nn/find_layers.h: each goes through the modules of its own language, in the same order.
"""

from __future__ import annotations

import torch
from torch import nn

from ..nn.layer import SparseLayer

__all__ = ["Group", "check_shared", "groups_of"]

Group = tuple[int, str, list[SparseLayer]]
"""A weight's number among all in the order of ``named_modules``, its first layer's name, and its layers."""

# The code of a status, as csrc/core/status.h has it, where layers that share a weight have different patterns.
_OTHER_PATTERN = 6 << 32


def groups_of(model: nn.Module, act: str) -> list[Group]:
    """Those of a model, which must hold one for what is about to be done to it."""
    by_weight: dict[int, tuple[str, list[SparseLayer]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            own = module._parameters.get("weight")
            by_weight.setdefault(id(module if own is None else own), (name, []))[1].append(module)
    if not by_weight:
        raise ValueError(
            f"model must hold a SparseLinear or SparseConv2d to be {act}, got none in {type(model).__name__}"
        )
    return [(index, name, layers) for index, (name, layers) in enumerate(by_weight.values())]


def check_shared(name: str, layers: list[SparseLayer], status: torch.Tensor | None = None) -> None:
    """Layers that share a weight must agree in what its entries are."""
    for other in layers[1:]:
        pairs = list(zip(layers[0].pattern[:2], other.pattern[:2], strict=True))
        same_shape = all(mine.shape == theirs.shape for mine, theirs in pairs)
        if status is not None and same_shape:
            differs = torch.stack([(mine != theirs).any() for mine, theirs in pairs]).any()
            status[0] = torch.where(differs, status[0].clamp(max=_OTHER_PATTERN), status[0])
        elif not same_shape or not all(torch.equal(mine, theirs) for mine, theirs in pairs):
            raise ValueError(f"layer {name!r}: layers that share its weight must have its pattern, got another")
