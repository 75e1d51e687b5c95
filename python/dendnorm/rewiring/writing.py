"""Writing a rewiring: the pattern, the values and all that belongs to them, in place, after everything is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..nn.linear import SparseLinear
from ..nn.pattern import Pattern
from ..ops import library as _ops
from .reports import LayerReport

__all__ = ["Rewiring", "check_writable", "companions_of"]


@dataclass(frozen=True)
class Rewiring:
    """All that a rewiring will write to one weight, computed before anything is written."""

    layers: list[SparseLinear]  # more than one where they share the weight
    report: LayerReport
    pattern: Pattern
    source: torch.Tensor  # int32 (nnz,): where each connection was, -1 for the new ones
    values: torch.Tensor  # (k,): v of the new ones
    companions: list[torch.Tensor]  # the gradient and the optimizer's state, of the weight's shape

    def write(self, status: torch.Tensor | None) -> None:
        """Nothing is written where a status tells of a fault."""
        if self.report.k == 0:
            return
        for layer in self.layers:
            if status is None:
                layer._write(self.pattern)
            else:
                for buffer, tensor in zip(layer.pattern, self.pattern, strict=True):
                    _ops.assign_(buffer, tensor, status=status)
        _carry(self.layers[0].weight, self.source, self.values, status)
        for tensor in self.companions:
            _carry(tensor, self.source, tensor.new_zeros(()), status)


def check_writable(name: str, layer: SparseLinear) -> None:
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


def _carry(values: torch.Tensor, source: torch.Tensor, fill: torch.Tensor, status: torch.Tensor | None) -> None:
    device = values.device
    if _ops.has_kernel("carry_", device):
        _ops.carry_(values, source.to(device), fill.to(device), sound=True, status=status)
    else:
        moved = values.cpu()
        _ops.carry_(moved, source.cpu(), fill.cpu(), sound=True)
        values.copy_(moved)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of an optimizer's state, which may hold them in dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)


def companions_of(name: str, weight: nn.Parameter, optimizer: torch.optim.Optimizer | None) -> list[torch.Tensor]:
    """The tensors that belong to the weight entry by entry, each once; all can be written in place."""
    if weight.is_meta:
        raise ValueError(f"layer {name!r} must have values to be rewired, got one on the meta device")
    state = optimizer.state.get(weight, {}) if optimizer is not None else {}
    found: dict[tuple, torch.Tensor] = {}
    for tensor in [weight.grad, *_tensors_in(state)]:
        if tensor is None or tensor.shape != weight.shape or tensor.numel() == 0:
            continue
        if tensor.layout != torch.strided or tensor.is_inference() or (tensor.stride(0) == 0 and len(tensor) > 1):
            raise ValueError(
                f"layer {name!r}: optimizer state of the weight's shape must be dense and writable in place, got"
                f" layout {tensor.layout}, stride {tensor.stride() if tensor.layout == torch.strided else None},"
                f" inference tensor {tensor.is_inference()}"
            )
        if tensor.device.type != "meta":
            found.setdefault((tensor.device, tensor.data_ptr(), tensor.stride(), tensor.dtype), tensor)
    found.pop((weight.device, weight.data_ptr(), weight.stride(), weight.dtype), None)
    return list(found.values())
