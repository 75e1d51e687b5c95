"""From dense models to sparse ones, and parameter groups for their optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .layers import SparseLinear
from .norms import Norm

__all__ = ["param_groups", "sparsify"]


def sparsify(
    model: nn.Module, density: float | None = None, *, norm: Norm | str | None = "l0", skip: Iterable[str] = ()
) -> dict[str, nn.Linear]:
    """Replace every ``nn.Linear`` in a model by a ``SparseLinear`` that computes the same, up to what is dropped.

    In place, by ``SparseLinear.from_dense``; an optimizer must be made afterwards. Only modules whose class is
    ``nn.Linear`` itself: a subclass may use its weight in its own way. A module used in several places stays one.

    Args:
        model: any module but an ``nn.Linear``, which cannot replace itself.
        density: share of the weights of each layer that is kept, the largest; None keeps those that are not 0.
        norm: a string gives each layer its own; one ``Norm`` object is shared by all.
        skip: qualified names to leave out, with everything inside them; ``*`` and ``?`` stand for any characters.

    Returns:
        the replaced modules by their first name in the model.

    Raises:
        TypeError, ValueError: model, a name in skip that fits nothing, a weight that another module uses too, or
            anything that ``from_dense`` refuses. The model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if type(model) is nn.Linear:
        raise ValueError("model must hold the nn.Linear to be replaced, got an nn.Linear; use SparseLinear.from_dense")
    if isinstance(skip, str):
        raise TypeError(f"skip must be a list of names, got the string {skip!r}")
    skip = list(skip)
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for pattern in skip:
        if not isinstance(pattern, str):
            raise TypeError(f"skip must be a list of names, got {pattern!r} in it")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"skip must name modules of the model, got {pattern!r}, which fits none of them")

    def skipped(name: str) -> bool:
        parts = name.split(".")
        return any(fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)) for pattern in skip)

    every = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if name]
    # A module that is used in several places stays everywhere if one of its names is skipped.
    stays = {id(module) for name, module in every if type(module) is nn.Linear and skipped(name)}
    places = [(name, module) for name, module in every if type(module) is nn.Linear and id(module) not in stays]
    first = {}
    for name, module in places:
        first.setdefault(id(module), name)
    _refuse_tied(model, {id(module): module for _, module in places}, first)
    made: dict[int, SparseLinear] = {}
    for _, module in places:
        if id(module) not in made:
            try:
                made[id(module)] = SparseLinear.from_dense(module, density, norm=norm)
            except ValueError as error:
                raise ValueError(f"{first[id(module)]}: {error}") from None
    replaced: dict[str, nn.Linear] = {}
    for name, module in places:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[id(module)])
        if first[id(module)] == name:
            replaced[name] = module
    return replaced


def _refuse_tied(model: nn.Module, chosen: dict[int, nn.Module], names: dict[int, str]) -> None:
    """A weight that an embedding or another layer uses too would silently become two."""
    owners: dict[int, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            other = owners.setdefault(id(parameter), (f"{name}.{key}".lstrip("."), module))
            if other[1] is not module and (id(module) in chosen or id(other[1]) in chosen):
                layer = names[id(module) if id(module) in chosen else id(other[1])]
                raise ValueError(
                    f"model must not share a weight between {other[0]} and {name}.{key} where it is to become sparse;"
                    f" add {layer!r} to skip"
                )


def param_groups(model: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Two groups for a torch optimizer: what decays, and what does not.

    The values of sparse layers decay, and so do parameters of two or more dimensions (dense weights, filters); biases,
    excitabilities and every other scalar or vector do not. Each parameter is in one of them, once.

    Args:
        model: any module.
        weight_decay: of the first group, finite and at least 0.

    Returns:
        ``[{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}]``

    Raises:
        TypeError, ValueError: model or weight_decay.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, (int, float)):
        raise TypeError(f"weight_decay must be a number, got {weight_decay!r}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay must be finite and at least 0, got {weight_decay}")
    sparse = {id(module.weight) for module in model.modules() if isinstance(module, SparseLinear)}
    excitabilities = {id(parameter) for module in model.modules() if isinstance(module, Norm)
                      for parameter in module.parameters()}  # fmt: skip
    decays, stays = [], []
    for parameter in model.parameters():
        decaying = id(parameter) in sparse or (parameter.dim() >= 2 and id(parameter) not in excitabilities)
        (decays if decaying else stays).append(parameter)
    return [{"params": decays, "weight_decay": float(weight_decay)}, {"params": stays, "weight_decay": 0.0}]
