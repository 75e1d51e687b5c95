"""Which layers of a model are replaced, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from ..nn.layer import SparseLayer
from .attached import give_hooks, what_stays
from .holders import holders
from .readers import readers

__all__ = ["CONV1D", "DENSE", "TYPES", "as_dense", "first_names", "kind_of", "places", "replace", "size", "skipper"]

CONV1D = "transformers.pytorch_utils.Conv1D"
DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d)  # what has a sparse form, and transformers' Conv1D
TYPES: tuple[type | str, ...] = (nn.Linear, CONV1D)


def kind_of(module: nn.Module) -> str:
    """The qualified name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_conv1d(module: nn.Module) -> bool:
    # By its name: transformers need not be installed.
    return any(f"{kind.__module__}.{kind.__qualname__}" == CONV1D for kind in type(module).__mro__)


def _is_dense(module: nn.Module) -> bool:
    return isinstance(module, DENSE) or _is_conv1d(module)


def as_dense(module: nn.Module) -> nn.Linear | nn.Conv1d | nn.Conv2d:
    """The module itself, or an ``nn.Linear`` that has a Conv1D's own memory."""
    if isinstance(module, DENSE):
        return module
    weight, bias = module.weight, module.bias
    assert isinstance(weight, torch.Tensor)
    inputs, outputs = weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(weight.detach().T, requires_grad=weight.requires_grad)
    linear.bias = bias  # type: ignore[assignment]
    return linear.train(module.training)


def _check_types(types: Iterable[type | str]) -> list[type | str]:
    if isinstance(types, (str, type)):
        raise TypeError(f"types must be a list of classes or qualified names, got {types!r}")
    found = list(types)
    for kind in found:
        if isinstance(kind, type) and issubclass(kind, DENSE):
            continue
        if isinstance(kind, type) and f"{kind.__module__}.{kind.__qualname__}" == CONV1D:
            continue
        if not isinstance(kind, str):
            raise TypeError(
                "types must hold nn.Linear, nn.Conv1d, nn.Conv2d, subclasses of these, transformers' Conv1D, or"
                f" qualified names, got {kind!r}"
            )
    return found


def skipper(model: nn.Module, skip: Iterable[str]) -> Callable[[str], bool]:
    """Whether a qualified name is skipped, itself or by something that it lies in.

    Raises:
        TypeError, ValueError: skip is no list of names, or one fits nothing.
    """
    if isinstance(skip, str):
        raise TypeError(f"skip must be a list of names, got the string {skip!r}")
    patterns = list(skip)
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"skip must be a list of names, got {pattern!r} in it")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"skip must name modules of the model, got {pattern!r}, which fits none of them")

    def skipped(name: str) -> bool:
        parts = name.split(".")
        return any(fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)) for pattern in patterns)

    return skipped


def places(
    model: nn.Module, skip: Iterable[str], types: Iterable[type | str]
) -> tuple[list[tuple[str, nn.Module]], dict[str, str]]:
    """Where a model holds a layer to be replaced, by every name; and of what is left, the reason by first name.

    Raises:
        TypeError, ValueError: the model is itself such a layer, or skip or types are not as ``sparsify`` says.
    """
    if type(model) in DENSE or _is_conv1d(model):
        kind = "Conv1D" if _is_conv1d(model) else f"nn.{type(model).__name__}"
        use = f"Sparse{type(model).__name__}" if type(model) in DENSE else "SparseLinear"
        raise ValueError(f"model must hold the {kind} to be replaced, got an {kind}; use {use}.from_dense")
    kinds, skipped = _check_types(types), skipper(model, skip)
    every = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if name]
    candidates = {id(module): module for _, module in every if _is_dense(module)}
    read, held = readers(model, candidates.values()), holders(model, candidates.values())
    # A module that is used in several places stays everywhere if one of its names is skipped.
    stays = {id(module) for name, module in every if id(module) in candidates and skipped(name)}
    left: dict[str, str] = {}
    chosen = []
    reasons: dict[int, str | None] = {}
    for name, module in every:
        key = id(module)
        if key not in reasons:
            if key in candidates:
                reasons[key] = _why_not(module, kinds, key in stays, read.get(key), held.get(key))
            else:
                reasons[key] = _other(module)
            if reasons[key] is not None:
                left[name] = str(reasons[key])
        if key in candidates and reasons[key] is None:
            chosen.append((name, module))
    return chosen, left | _parameters(model)


def _why_not(
    module: nn.Module, kinds: list[type | str], skipped: bool, reader: str | None, holder: str | None
) -> str | None:
    """Why a layer that has a sparse form is left, or None."""
    if skipped:
        return "named in skip"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return f"{type(module).__name__} has no size before a first batch: run one through the model, then sparsify"
    if reader is not None:
        return f"its weight is read by {reader}, which takes it for a matrix"
    if holder is not None:
        return f"{holder} holds it, too, besides the model's modules, and would go on with the dense layer"
    if "parametrizations" in module._modules:
        return "a parametrization computes its weight or bias: torch.nn.utils.parametrize.remove_parametrizations first"
    for hook in module._forward_pre_hooks.values():
        if type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
            return f"{type(hook).__name__} computes its weight at every call: remove that first"
    attached = what_stays(module)
    if attached is not None:
        return attached
    if type(module) not in kinds and kind_of(module) not in kinds:
        base = next((kind for kind in DENSE if isinstance(module, kind) and type(module) is not kind), None)
        what = "" if base is None else f"a subclass of nn.{base.__name__} "
        return f"{kind_of(module)} is {what}not among types"
    if isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == module.in_channels > 1:
        return "a filter of it sees one channel (depthwise): of so few weights a sparse form would gain nothing"
    return None


def _other(module: nn.Module) -> str | None:
    """Why a module of another kind is left, where it holds a matrix or filters."""
    if isinstance(module, SparseLayer):
        return "sparse already"
    if isinstance(getattr(module, "weight", None), torch.Tensor) and "weight" in module._parameters:
        weight = module._parameters["weight"]
        if isinstance(weight, UninitializedTensorMixin):
            return f"{type(module).__name__} has no size before a first batch, and no sparse form"
        if weight is not None and weight.dim() >= 2:
            return f"{type(module).__name__} is not among types"
    return None


def _parameters(model: nn.Module) -> dict[str, str]:
    """Matrices that belong to a module itself: of attention's queries, keys and values, of an LSTM, of experts."""
    found = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None or key == "weight" or isinstance(parameter, UninitializedTensorMixin):
                continue
            if min(parameter.shape, default=0) > 1 and (
                parameter.dim() == 3 or (parameter.dim() == 2 and "weight" in key)
            ):
                found[f"{name}.{key}".lstrip(".")] = f"a Parameter of {type(module).__name__} itself, not a module"
    return found


def first_names(found: list[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """Each module once, by its first name."""
    names: dict[int, str] = {}
    for name, module in found:
        names.setdefault(id(module), name)
    return {name: module for name, module in found if names[id(module)] == name}


def size(model: nn.Module) -> int:
    """How many parameters a model has; those without a size yet do not count."""
    return sum(tensor.numel() for tensor in model.parameters() if not isinstance(tensor, UninitializedTensorMixin))


def replace(model: nn.Module, found: list[tuple[str, nn.Module]], made: Mapping[int, nn.Module]) -> None:
    """Put, in every place, what was made for the module there (by its ``id``); it takes over its hooks."""
    for module in {id(module): module for _, module in found}.values():
        give_hooks(module, made[id(module)])
    for name, module in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[id(module)])
