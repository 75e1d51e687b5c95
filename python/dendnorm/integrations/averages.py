"""Averages of a model's weights (EMA, SWA) that go on through rewiring."""

from __future__ import annotations

import torch
from torch import nn

from ..nn.layer import SparseLayer
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
        averaged: a ``torch.optim.swa_utils.AveragedModel``, or a copy of the model. It must not have been updated since
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
        planned.append((mine, theirs, _moved(part.name, mine, theirs, part.grown)))
    for mine, theirs, values in planned:
        for layer in modules.values():
            if isinstance(layer, SparseLayer) and layer.weight is mine.weight:  # one rewiring for all that share it
                layer._write(theirs.pattern)
        mine.weight.copy_(values)


def _keys(layer: SparseLayer) -> torch.Tensor:
    """A number for each connection, ascending."""
    row, col = layer.pattern.edges()
    return col * layer.out_features + row


def _moved(name: str, mine: SparseLayer, theirs: SparseLayer, grown: tuple) -> torch.Tensor:
    """The averages in the order of the model's connections."""
    device = mine.weight.device
    old, new = _keys(mine), _keys(theirs).to(device)
    came = (grown[1] * theirs.out_features + grown[0]).to(device)
    fresh = torch.isin(new, came)  # a position that was emptied and taken again is new, too
    place = torch.searchsorted(old, new).clamp(max=max(len(old) - 1, 0))
    if not bool((fresh | (old[place] == new)).all()):
        raise ValueError(
            f"layer {name!r}: averaged must have the connections that the model had before its latest rewiring, got"
            " others: call follow after each rewiring, before the average is updated"
        )
    return torch.where(fresh, theirs.weight.to(device, mine.weight.dtype), mine.weight[place])
