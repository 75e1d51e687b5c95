"""Parameter groups for the optimizers of models that hold sparse layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from .._arguments import real
from ..nn.layer import SparseLayer
from ..nn.norms import Norm

__all__ = ["param_groups"]


def param_groups(model: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Two groups for a torch optimizer: what decays, and what does not.

    The values of sparse layers decay, and so do parameters of two or more dimensions (dense weights, filters); biases,
    excitabilities and every other scalar or vector do not. Each parameter is in one of them, once.

    Args:
        model: any module.
        weight_decay: of the first group, finite and at least 0. None: the first group says nothing of it, so that the
            optimizer's own applies.

    Returns:
        ``[{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}]``

    Raises:
        TypeError, ValueError: model or weight_decay.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if weight_decay is not None:
        weight_decay = real("weight_decay", weight_decay)
        if weight_decay < 0:
            raise ValueError(f"weight_decay must be finite and at least 0, got {weight_decay}")
    sparse = {id(module.weight) for module in model.modules() if isinstance(module, SparseLayer)}
    excitabilities = {id(parameter) for module in model.modules() if isinstance(module, Norm)
                      for parameter in module.parameters()}  # fmt: skip
    decays: list[nn.Parameter] = []
    stays: list[nn.Parameter] = []
    for parameter in model.parameters():
        decaying = id(parameter) in sparse or (parameter.dim() >= 2 and id(parameter) not in excitabilities)
        (decays if decaying else stays).append(parameter)
    first: dict[str, Any] = {"params": decays}
    if weight_decay is not None:
        first["weight_decay"] = weight_decay
    return [first, {"params": stays, "weight_decay": 0.0}]
