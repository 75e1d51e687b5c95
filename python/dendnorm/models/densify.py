"""The way back: from sparse layers to dense ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..nn.layer import SparseLayer
from ..nn.spread import refuse_wrapped
from .attached import what_stays
from .places import first_names, replace, size, skipper
from .report import Replaced

__all__ = ["densify"]


def densify(model: nn.Module, *, skip: Iterable[str] = ()) -> Replaced:
    """Replace every sparse layer in a model by the dense one with its effective weights, in place.

    It becomes an ``nn.Linear``, ``nn.Conv1d`` or ``nn.Conv2d``. The model computes what it did, to rounding error, in
    layers that every tool knows: exporters, quantisation, pruning, adapters. Training mode, dtype, device and
    ``requires_grad`` are kept; a module used in several places stays one, and so does a Parameter of values or a bias
    that several layers share, where they agree in the rest. An optimizer must be made afterwards.

    Args:
        model: any module but a sparse layer, which cannot replace itself: use its ``to_dense()``.
        skip: qualified names to leave out, with everything inside them; ``*`` and ``?`` stand for any characters.

    Returns:
        the replaced layers by their first name in the model: a dict that prints as that of ``sparsify`` does. It is
        empty where the model holds no sparse layer. A layer whose ``forward`` was replaced on the module itself, or
        that has hooks on its gradients, is left and said so.

    Raises:
        TypeError, ValueError: model or skip, a ``DistributedDataParallel`` around it, or a weight that a hook or
            parametrization computes for a matrix. The model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, SparseLayer):
        kind = type(model).__name__
        raise ValueError(f"model must hold the {kind} to be replaced, got a {kind}; use to_dense()")
    skipped = skipper(model, skip)
    every = [(name, module) for name, module in model.named_modules(remove_duplicate=False)
             if isinstance(module, SparseLayer)]  # fmt: skip
    stays = {id(module): why for _, module in every if (why := what_stays(module)) is not None}
    stays |= {id(module): "named in skip" for name, module in every if skipped(name)}
    found = [(name, module) for name, module in every if id(module) not in stays]
    chosen = first_names(list(found))
    left = {name: stays[id(module)] for name, module in first_names(list(every)).items() if id(module) in stays}
    refuse_wrapped(model, {id(module) for _, module in found}, "made dense")
    made = _dense({id(module): module for _, module in found})
    before = size(model)
    replace(model, list(found), made)
    layers = {name: module for name, module in chosen.items() if isinstance(module, SparseLayer)}
    return Replaced(
        "densify",
        chosen,
        left,
        {name: layer.nnz for name, layer in layers.items()},
        {name: layer.in_features * layer.out_features for name, layer in layers.items()},
        (before, size(model)),
    )


def _dense(layers: dict[int, SparseLayer]) -> dict[int, Any]:
    """For the ``id`` of each layer its dense form; what layers share is shared by these."""
    made: dict[int, Any] = {}
    weights: dict[tuple, nn.Parameter] = {}
    biases: dict[int, nn.Parameter] = {}
    for key, layer in layers.items():
        dense: Any = layer.to_dense()
        weight = layer.weight
        dense.weight.requires_grad_(weight.requires_grad)
        pattern = tuple(layer.row_indices.tolist()) if _shared(weight, layer, layers) else None
        if pattern is not None:
            shape = tuple(dense.weight.shape)
            same = (id(weight), id(layer.norm), shape, tuple(layer.ccol_indices.tolist()), pattern)
            dense.weight = weights.setdefault(same, dense.weight)
        if layer.bias is not None:
            dense.bias.requires_grad_(layer.bias.requires_grad)
            dense.bias = biases.setdefault(id(layer.bias), dense.bias)
        made[key] = dense
    return made


def _shared(weight: object, layer: SparseLayer, layers: dict[int, SparseLayer]) -> bool:
    return any(other is not layer and other._parameters.get("weight") is weight for other in layers.values())
