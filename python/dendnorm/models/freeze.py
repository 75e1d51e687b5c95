"""From layers that train to layers that only compute."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..nn.frozen import FrozenLinear
from ..nn.layer import SparseLayer
from ..nn.linear import SparseLinear
from .attached import own_forward
from .places import first_names, replace, size, skipper
from .report import Replaced

__all__ = ["freeze"]


def freeze(model: nn.Module, *, skip: Iterable[str] = ()) -> Replaced:
    """Replace every ``SparseLinear`` in a model by a ``FrozenLinear`` that computes the same, in place, for inference.

    Effective weights in row order and narrow indices: at most half the memory, and less to do in a call, which shows
    most in small batches. No derivatives, no rewiring, no way back: keep a checkpoint of the model itself. A module
    used in several places stays one. The frozen layers are in evaluation mode; in training mode they refuse to run.
    Sparse convolutions are left: they have no frozen form.

    Args:
        model: any module but a ``SparseLinear``, which cannot replace itself: use ``FrozenLinear.from_sparse``.
        skip: qualified names to leave out, with everything inside them; ``*`` and ``?`` stand for any characters.

    Returns:
        the replaced layers by their first name in the model: a dict that prints as that of ``densify`` does. It is
        empty where the model holds no ``SparseLinear``.

    Raises:
        TypeError, ValueError: model or skip, or a weight that a hook or parametrization computes for a matrix. The
            model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, SparseLinear):
        raise ValueError(
            "model must hold the SparseLinear to be replaced, got a SparseLinear; use FrozenLinear.from_sparse(layer)"
        )
    skipped = skipper(model, skip)
    every = [(name, module) for name, module in model.named_modules(remove_duplicate=False)
             if isinstance(module, SparseLayer)]  # fmt: skip
    stays = {id(module): "a convolution" for _, module in every if not isinstance(module, SparseLinear)}
    stays |= {id(module): why for _, module in every if (why := own_forward(module)) is not None}
    stays |= {id(module): "named in skip" for name, module in every if skipped(name)}
    found = [(name, module) for name, module in every if id(module) not in stays]
    chosen = first_names(list(found))
    left = {name: stays[id(module)] for name, module in first_names(list(every)).items() if id(module) in stays}
    layers = {name: module for name, module in chosen.items() if isinstance(module, SparseLinear)}
    made = {id(layer): FrozenLinear.from_sparse(layer) for layer in layers.values()}
    parameters = size(model)
    replace(model, list(found), made)
    return Replaced(
        "freeze",
        chosen,
        left,
        {name: layer.nnz for name, layer in layers.items()},
        {name: layer.in_features * layer.out_features for name, layer in layers.items()},
        (parameters, parameters + sum(layer.in_features * layer.out_features - layer.nnz for layer in layers.values())),
    )
