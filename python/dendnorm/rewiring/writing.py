"""Writing a rewiring: the pattern, the values and all that belongs to them, in place, after everything is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..nn.layer import SparseLayer
from ..nn.pattern import Pattern
from .moves import Write, carry
from .reports import LayerReport

__all__ = ["Rewiring", "check_writable", "trains"]


@dataclass(frozen=True)
class Rewiring:
    """All that a rewiring will write to one weight, computed before anything is written."""

    layers: list[SparseLayer]  # more than one where they share the weight
    report: LayerReport
    pattern: Pattern
    source: torch.Tensor  # int32 (nnz,): where each connection was, -1 for the new ones
    values: torch.Tensor  # (k,): v of the new ones
    companions: list[Write]  # move the gradient and the optimizer's state

    def write(self, status: torch.Tensor | None) -> None:
        """Nothing is written where a status tells of a fault."""
        if self.report.k == 0:
            return
        for layer in self.layers:
            layer._write(self.pattern, status)
        carry(self.layers[0].weight, self.source, self.values, status)
        for write in self.companions:
            write(status)


def trains(layer: SparseLayer) -> bool:
    """Whether the layer's weight is trained: itself, or those that it is computed from."""
    own = layer._parameters.get("weight")
    if own is not None:
        return own.requires_grad
    sources = ("weight", "parametrizations.weight")
    return any(tensor.requires_grad for name, tensor in layer.named_parameters() if name.startswith(sources))


def check_writable(name: str, layer: SparseLayer) -> None:
    """Whether the layer's weight is its own and whole on this rank: a rewiring writes into it."""
    if "weight" not in layer._parameters:
        raise ValueError(
            f"layer {name!r}: weight must be a Parameter of the layer to be rewired, got one that is computed from"
            " others (parametrized, pruned or weight-normalised): remove that first, for example with"
            " torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
        )
    kind = type(layer.weight.detach())
    if kind is not torch.Tensor:
        raise ValueError(
            f"layer {name!r}: weight must be a plain tensor to be rewired, got a {kind.__name__}; a sharded layer must"
            " stay whole on every rank: dendnorm.integrations.fsdp.keep_whole(model)"
        )

    if any(tensor.is_inference() for tensor in (layer.weight, *layer.pattern)):
        raise ValueError(
            f"layer {name!r}: weight and pattern must be ordinary tensors to be rewired, got some that were made under"
            " torch.inference_mode(), which cannot be written in place"
        )
