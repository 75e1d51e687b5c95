"""Writing a rewiring: the pattern, the values and all that belongs to them, in place, after everything is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..nn.layer import SparseLayer
from ..nn.spread import Spread, is_spread
from .moves import Write, carry
from .reports import LayerReport

__all__ = ["Rewiring", "check_writable", "trains"]


@dataclass(frozen=True)
class Rewiring:
    """All that a rewiring will write to one weight, computed before anything is written."""

    layers: list[SparseLayer]  # more than one where they share the weight
    report: LayerReport
    patterns: list[Write]  # write the pattern to each of the layers
    source: torch.Tensor  # int32 (nnz,): where each connection was, -1 for the new ones
    values: torch.Tensor  # (k,): v of the new ones
    companions: list[Write]  # move the gradient and the optimizer's state

    def write(self, status: torch.Tensor | None) -> None:
        """Nothing is written where a status tells of a fault."""
        if self.report.k == 0:
            return
        for write in self.patterns:
            write(status)
        carry(self.layers[0].weight, self.source, self.values, status)
        for write in self.companions:
            write(status)


def _is_flattened(layer: SparseLayer) -> bool:
    """Whether FSDP1 has made the layer's weight a part of another parameter."""
    if "weight" in layer._parameters:
        return getattr(layer._parameters["weight"], "_fsdp_flattened", False)
    return "parametrizations" not in layer._modules and not layer._forward_pre_hooks


def trains(layer: SparseLayer) -> bool:
    """Whether the layer's weight is trained: itself, or those that it is computed from, as far as can be known."""
    own = layer._parameters.get("weight")
    if own is not None:
        return own.requires_grad
    if _is_flattened(layer):
        return True  # which of its parts are, nobody can say
    sources = ("weight", "parametrizations.weight")
    return any(tensor.requires_grad for name, tensor in layer.named_parameters() if name.startswith(sources))


_OF_FSDP1 = (
    "layer {name!r}: weight must be a Parameter of the layer to be {act}, got a part of what FullyShardedDataParallel"
    " (FSDP1) has flattened; shard the model with"
    " torch.distributed.fsdp.fully_shard (FSDP2), or leave sparse layers out of it (ignored_states=)"
)


def check_writable(name: str, layer: SparseLayer, act: str = "rewired") -> None:
    """Whether the layer's weight is its own, and whole or sharded in a way that is known: a rewiring writes into it."""
    if _is_flattened(layer):
        raise ValueError(_OF_FSDP1.format(name=name, act=act))
    if "weight" not in layer._parameters:
        raise ValueError(
            f"layer {name!r}: weight must be a Parameter of the layer to be {act}, got one that is computed from"
            " others (parametrized, pruned or weight-normalised): remove that first, for example with"
            " torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
        )
    weight: Any = layer.weight
    if is_spread(weight):
        if act != "rewired":
            raise ValueError(
                f"layer {name!r}: weight must be whole to be {act}, got a DTensor that is sharded over"
                f" {weight.device_mesh.size()} ranks: do it before fully_shard, and go on from a checkpoint"
            )
        try:
            Spread.of(weight)
        except ValueError as error:
            raise ValueError(
                f"layer {name!r}: weight {error}; shard it with fully_shard alone, or keep it whole on every rank:"
                " dendnorm.integrations.fsdp.keep_whole(model)"
            ) from None
        weight = weight.to_local()
    if type(weight.detach()) is not torch.Tensor:
        raise ValueError(
            f"layer {name!r}: weight must be a plain tensor to be {act}, got a {type(weight.detach()).__name__}"
        )
    if len(layer.weight) != layer.nnz:
        raise ValueError(
            f"layer {name!r}: weight must have {layer.nnz} entries, one for each connection, to be {act}, got"
            f" {len(layer.weight)}"
        )
    if any(tensor.is_inference() for tensor in (weight, *layer.pattern)):
        raise ValueError(
            f"layer {name!r}: weight and pattern must be ordinary tensors to be {act}, got some that were made under"
            " torch.inference_mode(), which cannot be written in place"
        )
