"""Averages of a model's weights (EMA, SWA) that go on through rewiring."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..nn.layer import SparseLayer
from ..nn.spread import Spread, is_spread
from ..rewiring.exchange import exchanged
from ..rewiring.reports import RewireReport

__all__ = ["follow"]


@torch.no_grad()
def follow(averaged: nn.Module, model: nn.Module, report: RewireReport) -> None:
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
            rank must call this). It must not have been updated since
            the rewiring.
        model: what was rewired.
        report: of that rewiring.

    Raises:
        ValueError: layers that do not correspond. Nothing has changed then.
    """
    inner = averaged.module if isinstance(averaged, torch.optim.swa_utils.AveragedModel) else averaged
    modules, planned = dict(inner.named_modules()), []
    for part in report:
        mine, theirs = modules.get(part.name), model.get_submodule(part.name)
        if not isinstance(theirs, SparseLayer):
            raise ValueError(f"model must hold the layer {part.name!r} that report tells of, got {theirs}")
        shape = (theirs.in_features, theirs.out_features, theirs.nnz)
        if not isinstance(mine, SparseLayer) or (mine.in_features, mine.out_features, mine.nnz) != shape:
            raise ValueError(f"averaged must hold a layer {part.name!r} like the model's, {theirs}, got {mine}")
        planned.append((mine, theirs, _source(part.name, mine, theirs, part.grown)))
    for mine, theirs, source in planned:
        for layer in modules.values():
            if isinstance(layer, SparseLayer) and layer.weight is mine.weight:  # one rewiring for all that share it
                layer._write(theirs.pattern)
        _move(mine.weight, theirs.weight, source)


def _keys(layer: SparseLayer) -> torch.Tensor:
    """A number for each connection, ascending."""
    row, col = layer.pattern.edges()
    return col * layer.out_features + row


def _source(name: str, mine: SparseLayer, theirs: SparseLayer, grown: tuple) -> torch.Tensor:
    """Where the average of each of the model's connections is, -1 where there is none."""
    if is_spread(mine.weight) != is_spread(theirs.weight) or (
        is_spread(mine.weight) and Spread.of(mine.weight) != Spread.of(theirs.weight)
    ):
        raise ValueError(f"layer {name!r}: averaged must be sharded as the model is, or both must be whole")
    device = mine.row_indices.device
    old, new = _keys(mine), _keys(theirs).to(device)
    came = (grown[1] * theirs.out_features + grown[0]).to(device)
    fresh = torch.isin(new, came)  # a position that was emptied and taken again is new, too
    place = torch.searchsorted(old, new).clamp(max=max(len(old) - 1, 0))
    if not bool((fresh | (old[place] == new)).all()):
        raise ValueError(
            f"layer {name!r}: averaged must have the connections that the model had before its latest rewiring, got"
            " others: call follow after each rewiring, before the average is updated"
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
