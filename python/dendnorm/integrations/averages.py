"""Averages of a model's weights (EMA, SWA) that go on through rewiring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..nn.layer import SparseLayer
from ..nn.spread import Spread, is_spread
from ..rewiring.exchange import exchanged
from ..rewiring.reports import LayerReport, RewireReport

__all__ = ["follow"]


@torch.no_grad()
def follow(averaged: nn.Module | Iterable[torch.Tensor], model: nn.Module, report: RewireReport) -> None:
    """Move the averaged values of sparse layers with their connections, after a rewiring of the model.

        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        ...
        report = rewire.step()
        follow(averaged, model, report)

    An average goes on entry by entry, and a rewiring changes which connection an entry is: without this, averages of
    one connection are mixed with those of another. Afterwards the averaged layers have the model's connections; what
    stayed keeps its average, and what is new begins with its value in the model. Biases and excitabilities are no
    connections and stay.

    Args:
        averaged: a ``torch.optim.swa_utils.AveragedModel``, or a copy of the model, sharded as the model is (then every
            rank must call this). Or the averages alone as tensors, one for each of ``model.parameters()`` or for each
            of these that trains, as ``shadow_params`` of diffusers' and torch_ema's are. It must not have been updated
            since the rewiring.
        model: what was rewired.
        report: of that rewiring.

    Raises:
        TypeError, ValueError: layers or tensors that do not correspond. Nothing has changed then.
    """
    if not isinstance(averaged, nn.Module):
        _follow_tensors(list(averaged), model, report)
        return
    inner = averaged.module if isinstance(averaged, torch.optim.swa_utils.AveragedModel) else averaged
    modules, planned = dict(inner.named_modules()), []
    for part in report:
        mine, theirs = modules.get(part.name), model.get_submodule(part.name)
        if not isinstance(theirs, SparseLayer):
            raise ValueError(f"model must hold the layer {part.name!r} that report tells of, got {theirs}")
        shape = (theirs.in_features, theirs.out_features, theirs.nnz)
        if not isinstance(mine, SparseLayer) or (mine.in_features, mine.out_features, mine.nnz) != shape:
            raise ValueError(f"averaged must hold a layer {part.name!r} like the model's, {theirs}, got {mine}")
        if is_spread(mine.weight) != is_spread(theirs.weight) or (
            is_spread(mine.weight) and Spread.of(mine.weight) != Spread.of(theirs.weight)
        ):
            raise ValueError(
                f"layer {part.name!r}: averaged must be sharded as the model is, or both must be whole, got another"
            )
        planned.append((mine, theirs, _source(part, _keys(mine), theirs)))
    for mine, theirs, source in planned:
        for layer in modules.values():
            if isinstance(layer, SparseLayer) and layer.weight is mine.weight:  # one rewiring for all that share it
                layer._write(theirs.pattern)
        _move(mine.weight, theirs.weight, source)


def _keys(layer: SparseLayer) -> torch.Tensor:
    """A number for each connection, ascending."""
    row, col = layer.pattern.edges()
    return col * layer.out_features + row


def _follow_tensors(averages: list[Any], model: nn.Module, report: RewireReport) -> None:
    every = list(model.parameters())
    owners = next(
        (own for own in (every, [each for each in every if each.requires_grad]) if len(own) == len(averages)), []
    )
    if not owners or any(
        not isinstance(mine, torch.Tensor) or mine.shape != own.shape
        for mine, own in zip(averages, owners, strict=True)
    ):
        raise ValueError(
            "averaged must be a model, or hold a tensor like each of the model's parameters, in their order, got"
            f" {len(averages)} for {len(every)} parameters, or other shapes"
        )
    planned = []
    for part in report:
        theirs: Any = model.get_submodule(part.name)
        if is_spread(theirs.weight):
            raise ValueError(f"layer {part.name!r}: averaged must be a model where weights are sharded, got tensors")
        new, came, went = _keys(theirs), _of_edges(part.grown, theirs), _of_edges(part.removed, theirs)
        old = torch.cat([new[~torch.isin(new, came)], went]).sort().values
        if len(old) != len(new) or bool((old.diff() == 0).any()):
            raise ValueError(f"layer {part.name!r}: report must be of its latest rewiring, got another")
        mine = next(each for each, own in zip(averages, owners, strict=True) if own is theirs.weight)
        planned.append((mine, theirs.weight, _source(part, old.to(mine.device), theirs)))
    for mine, weight, source in planned:
        _move(mine, weight, source)


def _of_edges(edges: tuple[torch.Tensor, torch.Tensor], layer: SparseLayer) -> torch.Tensor:
    row, col = (index.to(layer.row_indices.device) for index in edges)
    return col * layer.out_features + row


def _source(part: LayerReport, old: torch.Tensor, theirs: SparseLayer) -> torch.Tensor:
    """Where the average of each of the model's connections is among the old ones, -1 where there is none."""
    new, came = _keys(theirs).to(old.device), _of_edges(part.grown, theirs).to(old.device)
    fresh = torch.isin(new, came)  # a position that was emptied and taken again is new, too
    place = torch.searchsorted(old, new).clamp(max=max(len(old) - 1, 0))
    if not bool((fresh | (old[place] == new)).all()):
        raise ValueError(
            f"layer {part.name!r}: averaged must have the connections that the model had before its latest rewiring,"
            " got others: call follow after each rewiring, before the average is updated"
        )
    return torch.where(fresh, -1, place).int()


def _move(mine: Any, theirs: Any, source: torch.Tensor) -> None:
    """Averages to the places of the model's connections, and the model's values where there are none."""
    spread = Spread.of(mine) if is_spread(mine) else None
    if spread is not None:
        mine, theirs = mine.to_local(), theirs.to_local()
        fresh = source[spread.start : spread.stop] < 0
    else:
        fresh = source < 0
    if spread is not None and spread.ranks > 1:
        moved = exchanged(spread, mine, source, mine.new_zeros(()))
    else:
        moved = mine[source.clamp(min=0).to(mine.device).long()]
    mine.copy_(torch.where(fresh.to(mine.device), theirs.to(mine.device, mine.dtype), moved))
