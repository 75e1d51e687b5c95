"""From dense models to sparse ones, and how dense each layer then is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..nn.linear import SparseLinear
from ..nn.norms import Norm
from .allocation import allocate

__all__ = ["densities", "sparsify"]


def densities(
    model: nn.Module | Mapping[str, Sequence[int]],
    density: float | None = None,
    distribution: str = "uniform",
    *,
    epsilon: float | None = None,
    skip: Iterable[str] = (),
) -> dict[str, float]:
    """How dense each layer is to be, for a total that is given: for ``sparsify`` or to build layers with.

    - "uniform": each layer has the density that is asked for.
    - "er" (Erdos-Renyi): in proportion to (N + M) / (N M), so that large layers become the sparsest.
    - "erk" (with kernels): in proportion to (N + M + w + h) / (N M w h), a linear layer as in "er".

    The factor is such that all layers together have round(density * positions) connections, exactly; a layer that would
    get more than it has positions for is dense, and the others share the rest.

    Source: "er" D. C. Mocanu et al, Nature Communications 9, 2018; "erk" and the cap U. Evci et al, "Rigging the
    lottery: making all tickets winners", ICML 2020.

    Args:
        model: its layers are those that ``sparsify`` replaces; or shapes of weights by name, (M, N) or (M, N, h, w).
        density: of all layers together, in (0, 1].
        distribution: one of the above.
        epsilon: instead of density, for "er" and "erk": the factor itself, as Mocanu et al give it (20 in their
            networks); a layer has round(epsilon (N + M)) connections, at most as many as positions.
        skip: as for ``sparsify``.

    Returns:
        For each name the density, in [0, 1]: the number of connections over that of positions.

    Raises:
        TypeError, ValueError: an argument that is not as above.
    """
    if isinstance(model, nn.Module):
        places = _places(model, skip)
        shapes = {name: tuple(_as_linear(module).weight.shape) for name, module in _first(places).items()}
    elif isinstance(model, Mapping):
        shapes = {name: tuple(shape) for name, shape in model.items()}
    else:
        raise TypeError(f"model must be a torch.nn.Module or shapes by name, got {type(model).__name__}")
    counts = allocate(shapes, density, distribution, epsilon)
    if distribution == "uniform":
        return dict.fromkeys(shapes, float(density))
    return {name: counts[name] / math.prod(shape) for name, shape in shapes.items()}


def sparsify(
    model: nn.Module,
    density: float | Mapping[str, float] | None = None,
    *,
    distribution: str = "uniform",
    norm: Norm | str | None = "l0",
    skip: Iterable[str] = (),
) -> dict[str, nn.Module]:
    """Replace every ``nn.Linear`` in a model by a ``SparseLinear`` that computes the same, up to what is dropped.

    In place, by ``SparseLinear.from_dense``; an optimizer must be made afterwards. Only modules whose class is
    ``nn.Linear`` itself, for a subclass may use its weight in its own way, and ``transformers.pytorch_utils.Conv1D``,
    GPT-2's linear layer with a transposed weight. A module used in several places stays one.

    Args:
        model: any module but an ``nn.Linear``, which cannot replace itself.
        density: share of the weights that is kept, the largest; None keeps those that are not 0. Or the share for each
            layer by its name, which ``*`` and ``?`` may abbreviate; the first that fits counts.
        distribution: how a density is shared out among the layers, "uniform", "er" or "erk": see ``densities``.
        norm: a string gives each layer its own; one ``Norm`` object is shared by all.
        skip: qualified names to leave out, with everything inside them; ``*`` and ``?`` stand for any characters.

    Returns:
        the replaced modules by their first name in the model.

    Raises:
        TypeError, ValueError: model, a name in skip or density that fits nothing, a layer without a density, a weight
            that another module uses too, or anything that ``from_dense`` refuses. The model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    places = _places(model, skip)
    chosen = _first(places)
    first = {id(module): name for name, module in chosen.items()}
    _refuse_tied(model, {id(module): module for module in chosen.values()}, first)
    shares = _shares(chosen, density, distribution)
    made: dict[int, SparseLinear] = {}
    for name, module in chosen.items():
        try:
            made[id(module)] = SparseLinear.from_dense(_as_linear(module), shares[name], norm=norm)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for name, module in places:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[id(module)])
    return chosen


def _shares(
    chosen: Mapping[str, nn.Module], density: float | Mapping[str, float] | None, distribution: str
) -> Mapping[str, float | None]:
    """The density of each layer that is to become sparse."""
    if not isinstance(density, Mapping):
        if density is None and distribution == "uniform":
            return dict.fromkeys(chosen)
        shapes = {name: tuple(_as_linear(module).weight.shape) for name, module in chosen.items()}
        if distribution == "uniform":
            return dict.fromkeys(chosen, density)
        return {name: count / math.prod(shapes[name])
                for name, count in allocate(shapes, density, distribution).items()}  # fmt: skip
    if distribution != "uniform":
        raise ValueError(f"distribution must be left out where density names the layers, got {distribution!r}")
    shares = {name: next((key for key in density if fnmatchcase(name, key)), None) for name in chosen}
    for key in density:
        if not any(fnmatchcase(name, key) for name in chosen):
            raise ValueError(f"density must name layers to be replaced, {list(chosen)}, got {key!r}")
    missing = [name for name, key in shares.items() if key is None]
    if missing:
        raise ValueError(f"density must name every layer that is replaced, got none for {missing}; or skip them")
    return {name: density[key] for name, key in shares.items()}


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    # By its name: transformers need not be installed.
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _as_linear(module: nn.Module) -> nn.Linear:
    """The module itself, or an ``nn.Linear`` that has a Conv1D's own memory."""
    if not _is_conv1d(module):
        return module
    inputs, outputs = module.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().T, requires_grad=module.weight.requires_grad)
    linear.bias = module.bias
    return linear.train(module.training)


def _first(places: list[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """Each module once, by its first name."""
    names: dict[int, str] = {}
    for name, module in places:
        names.setdefault(id(module), name)
    return {name: module for name, module in places if names[id(module)] == name}


def _places(model: nn.Module, skip: Iterable[str]) -> list[tuple[str, nn.Module]]:
    """Where a model holds a linear layer that is not skipped, by every name."""
    if _is_linear(model):
        kind = "nn.Linear" if type(model) is nn.Linear else "Conv1D"
        raise ValueError(f"model must hold the {kind} to be replaced, got an {kind}; use SparseLinear.from_dense")
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
    stays = {id(module) for name, module in every if _is_linear(module) and skipped(name)}
    return [(name, module) for name, module in every if _is_linear(module) and id(module) not in stays]


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
