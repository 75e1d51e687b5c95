"""From dense models to sparse ones, and how dense each layer then is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..nn.conv import SparseConv1d, SparseConv2d
from ..nn.layer import SparseLayer
from ..nn.linear import SparseLinear
from ..nn.norms import Norm
from ..nn.spread import refuse_wrapped
from .allocation import allocate
from .places import TYPES, as_dense, first_names, places, replace, size
from .report import Replaced, why_nothing

__all__ = ["densities", "sparsify"]

SPARSE: dict[type[nn.Module], Any] = {nn.Linear: SparseLinear, nn.Conv1d: SparseConv1d, nn.Conv2d: SparseConv2d}


def densities(
    model: nn.Module | Mapping[str, Sequence[int]],
    density: float | None = None,
    distribution: str = "uniform",
    *,
    epsilon: float | None = None,
    skip: Iterable[str] = (),
    types: Iterable[type | str] = TYPES,
) -> dict[str, float]:
    """How dense each layer is to be, for a total that is given: for ``sparsify`` or to build layers with.

    - "uniform": each layer has the density that is asked for.
    - "er" (Erdos-Renyi): in proportion to (N + M) / (N M), so that large layers become the sparsest.
    - "erk" (with kernels): in proportion to (N + M + w + h) / (N M w h), a linear layer as in "er". N of a convolution
      in groups is the channels that a filter sees.

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
        skip, types: as for ``sparsify``.

    Returns:
        For each name the density, in [0, 1]: the number of connections over that of positions.

    Raises:
        TypeError, ValueError: an argument that is not as above.
    """
    if isinstance(model, nn.Module):
        found, _ = places(model, skip, types)
        shapes = {name: tuple(as_dense(module).weight.shape) for name, module in first_names(found).items()}
    elif isinstance(model, Mapping):
        shapes = {name: tuple(shape) for name, shape in model.items()}
    else:
        raise TypeError(f"model must be a torch.nn.Module or shapes by name, got {type(model).__name__}")
    counts = allocate(shapes, density, distribution, epsilon)
    if distribution == "uniform":
        return dict.fromkeys(shapes, float(density))  # type: ignore[arg-type]  # allocate has checked it
    return {name: counts[name] / math.prod(shape) for name, shape in shapes.items()}


def sparsify(
    model: nn.Module,
    density: float | Mapping[str, float] | None = None,
    *,
    distribution: str = "uniform",
    norm: Norm | str | None = "l0",
    skip: Iterable[str] = (),
    types: Iterable[type | str] = TYPES,
) -> Replaced:
    """Replace every ``nn.Linear`` in a model by a ``SparseLinear`` that computes the same, up to what is dropped.

    In place, by ``SparseLinear.from_dense``; an optimizer must be made afterwards. Only modules whose class is
    ``nn.Linear`` itself, for a subclass may use its weight in its own way, and ``transformers.pytorch_utils.Conv1D``,
    GPT-2's linear layer with a transposed weight: ``types`` names others, such as ``[nn.Conv2d, nn.Linear]``. A module
    used in several places stays one. A depthwise convolution, whose filters see one channel each, is left.

    What is left is said with the reason: ``print`` what this returns. A layer whose weight another module's ``forward``
    reads (``F.linear(x, self.qkv.weight)`` in Swin and BEiT, ``out_proj`` in ``nn.MultiheadAttention``) is left: a
    sparse layer has no matrix to be read. It is found in the sources of the model's classes, in every branch of them;
    what reaches a weight in another way is not, and is to be named in ``skip``. Hooks of calls go over to the sparse
    layer; one whose ``forward`` was replaced on the module itself, or that has hooks on its gradients, is left.

    Args:
        model: any module but one of these itself, which cannot replace itself.
        density: share of the weights that is kept, the largest; None keeps those that are not 0. Or the share for each
            layer by its name, which ``*`` and ``?`` may abbreviate; the first that fits counts.
        distribution: how a density is shared out among the layers, "uniform", "er" or "erk": see ``densities``.
        norm: a string gives each layer its own; one ``Norm`` object is shared by all.
        skip: qualified names to leave out, with everything inside them; ``*`` and ``?`` stand for any characters.
        types: the classes to replace, themselves and not their subclasses: ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``
            and subclasses of these, given as such or by qualified name (``"package.module.Class"``).

    Returns:
        the replaced modules by their first name in the model: a dict that prints what was replaced, what was left and
        why, and the density achieved; see ``dendnorm.models.report.Replaced``.

    Raises:
        TypeError, ValueError: model, a name in skip or density that fits nothing, a layer without a density, a weight
            that another module uses too, a ``DistributedDataParallel`` around it, nothing to replace (says why for each
            candidate), or anything that ``from_dense`` refuses. The model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    kinds = tuple(types) if not isinstance(types, (str, type)) else types
    found, left = places(model, skip, kinds)
    if not found:
        names = [f"nn.{kind.__name__}" if isinstance(kind, type) and kind in SPARSE
                 else str(getattr(kind, "__qualname__", kind)) for kind in kinds]  # fmt: skip
        raise ValueError(why_nothing(left, ", ".join(names)))
    chosen = first_names(found)
    first = {id(module): name for name, module in chosen.items()}
    refuse_wrapped(model, first, "made sparse")
    _refuse_tied(model, {id(module): module for module in chosen.values()}, first)
    shares = _shares(chosen, density, distribution)
    made: dict[int, SparseLayer] = {}
    for name, module in chosen.items():
        try:
            dense: Any = as_dense(module)
            form = next(sparse for kind, sparse in SPARSE.items() if isinstance(dense, kind))
            made[id(module)] = form.from_dense(dense, shares[name], norm=norm)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    before = size(model)
    replace(model, found, made)
    return Replaced(
        "sparsify",
        chosen,
        left,
        {name: made[id(module)].nnz for name, module in chosen.items()},
        {name: math.prod(as_dense(module).weight.shape) for name, module in chosen.items()},
        (size(model), before),
    )


def _shares(
    chosen: Mapping[str, nn.Module], density: float | Mapping[str, float] | None, distribution: str
) -> Mapping[str, float | None]:
    """The density of each layer that is to become sparse."""
    if not isinstance(density, Mapping):
        if density is None and distribution == "uniform":
            return dict.fromkeys(chosen)
        shapes = {name: tuple(as_dense(module).weight.shape) for name, module in chosen.items()}
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
    return {name: density[key] for name, key in shares.items() if key is not None}


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
