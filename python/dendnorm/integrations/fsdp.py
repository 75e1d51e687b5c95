"""Sparse layers in a model that ``torch.distributed.fsdp.fully_shard`` shards.

A layer whose weight is sharded trains (its norm must not have a scalar excitability, which ``fully_shard`` refuses),
but no rank has all its connections, so it cannot be rewired and ``SET`` refuses it by name. Sparse layers are small:
they can stay whole on every rank.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from ..nn.layer import SparseLayer
from ..nn.norms import Norm

__all__ = ["keep_whole"]


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
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}
    if not layers:
        raise ValueError(f"model must hold a SparseLinear, got none in {type(model).__name__}")
    if not dist.is_initialized():
        raise RuntimeError("torch.distributed must be initialised before keep_whole: call init_process_group")
    for name, layer in layers.items():
        if type(layer.weight.detach()) is not torch.Tensor or layer.weight.is_meta:
            raise ValueError(f"layer {name!r}: weight must be whole and have values, got {layer.weight!r}")
    size = dist.get_world_size(process_group)

    def average(parameter: nn.Parameter) -> None:
        assert parameter.grad is not None, "this runs once the gradient is there"
        dist.all_reduce(parameter.grad, group=process_group)
        parameter.grad.div_(size)

    kept = {parameter for layer in layers.values() for parameter in layer.parameters()}
    kept |= {parameter for norm in model.modules() if isinstance(norm, Norm) for parameter in norm.parameters()}
    with torch.no_grad():
        for layer in layers.values():
            for tensor in [*layer.parameters(), *layer.buffers()]:
                dist.broadcast(tensor, group=process_group, group_src=0)
            layer._adopt()  # a broadcast is a write that nothing counts
    for parameter in kept:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(average)
    return kept
