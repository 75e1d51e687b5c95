"""Sparse layers in a model that ``torch.distributed.fsdp.fully_shard`` shards.

Sharded sparse layers train and are rewired. ``fully_shard`` refuses parameters of no dimension, though, such as the
excitability that a layer's neurons share by default: ``keep_scalars`` leaves these whole, ``keep_whole`` the layers.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from ..nn.layer import SparseLayer
from ..nn.norms import Norm

__all__ = ["keep_scalars", "keep_whole"]


def keep_whole(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> set[nn.Parameter]:
    """Keep the sparse layers of a model whole and equal on every rank, while the rest is sharded.

        fully_shard(model, ignored_params=keep_whole(model))

    Their parameters and patterns become those of the group's first rank, and their gradients are averaged over the
    ranks in every backward pass, as soon as they are there. Every rank must call it, before ``fully_shard``, and must
    use the same layers in each backward pass.

    Args:
        model: with sparse layers on real devices; not wrapped yet.
        process_group: the ranks; None: all.

    Returns:
        the parameters of the sparse layers and their norms, for ``ignored_params``.

    Raises:
        ValueError: model has no sparse layer, or one that is sharded or without values.
        RuntimeError: torch.distributed is not initialised.
    """
    layers = _layers(model, "keep_whole")
    for name, layer in layers.items():
        if type(layer.weight.detach()) is not torch.Tensor or layer.weight.is_meta:
            raise ValueError(f"layer {name!r}: weight must be whole and have values, got {layer.weight!r}")
    kept = {parameter for layer in layers.values() for parameter in layer.parameters()}
    kept |= {parameter for norm in model.modules() if isinstance(norm, Norm) for parameter in norm.parameters()}
    with torch.no_grad():
        for layer in layers.values():
            for tensor in [*layer.parameters(), *layer.buffers()]:
                dist.broadcast(tensor, group=process_group, group_src=0)
            layer._adopt()  # a broadcast is a write that nothing counts
    _average(kept, process_group)
    return kept


def keep_scalars(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> set[nn.Parameter]:
    """Keep the excitabilities whole that all neurons of a layer share, while the rest of the layer is sharded.

        kept = keep_scalars(model)
        for block in model.blocks:
            fully_shard(block, ignored_params=kept)
        fully_shard(model, ignored_params=kept)

    They become those of the group's first rank, and their gradients are averaged over the ranks in every backward pass.
    Every rank must call it, before ``fully_shard``. On the meta device only the averaging is prepared.

    Args, Returns, Raises:
        as ``keep_whole``; the set may be empty.
    """
    _layers(model, "keep_scalars")
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    kept = {parameter for norm in norms for parameter in norm.parameters() if parameter.dim() == 0}
    with torch.no_grad():
        for parameter in _ordered(model, kept):
            if not parameter.is_meta:
                dist.broadcast(parameter, group=process_group, group_src=0)
    _average(kept, process_group)
    return kept


def _layers(model: nn.Module, function: str) -> dict[str, SparseLayer]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}
    if not layers:
        raise ValueError(f"model must hold a SparseLinear or SparseConv2d, got none in {type(model).__name__}")
    if not dist.is_initialized():
        raise RuntimeError(f"torch.distributed must be initialised before {function}: call init_process_group")
    return layers


def _ordered(model: nn.Module, some: set[nn.Parameter]) -> list[nn.Parameter]:
    """The same order on every rank."""
    return [parameter for parameter in model.parameters() if parameter in some]


def _average(kept: set[nn.Parameter], process_group: dist.ProcessGroup | None) -> None:
    size = dist.get_world_size(process_group)

    def average(parameter: nn.Parameter) -> None:
        assert parameter.grad is not None, "this runs once the gradient is there"
        dist.all_reduce(parameter.grad, group=process_group)
        parameter.grad.div_(size)

    for parameter in kept:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(average)
