"""The optimizer that somebody hands over: what is inside its wrappers, what it holds, and whose steps count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = [
    "attributes",
    "check_held",
    "check_keeps_no_copy",
    "check_kind",
    "described",
    "holds",
    "inside",
    "is_leaf",
    "is_optimizer",
    "stepping",
]

_DEPTH = 4  # of lists and dicts within each other that are looked through
_SIMPLE = (type(None), bool, int, float, str)  # most of what an optimizer holds


def attributes(value: object) -> dict[str, Any]:
    """What an object holds by name."""
    return getattr(value, "__dict__", {})


def is_optimizer(value: object) -> bool:
    """Whether it has parameter groups and state, as every optimizer and every wrapper of one does."""
    if isinstance(value, torch.optim.Optimizer):
        return True
    own = attributes(value)
    return not isinstance(value, type) and all(
        name in own or hasattr(type(value), name) for name in ("param_groups", "state")
    )


def contained(value: object, wanted: Callable[[object], bool], depth: int = _DEPTH) -> Iterator[object]:
    """Those of the objects in nested lists, tuples and dicts that are wanted; what is inside them is not looked at.

    Numbers and strings are never wanted.
    """
    if type(value) in _SIMPLE:
        return
    if wanted(value):
        yield value
    elif depth and isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield from contained(key, wanted, 0)
            yield from contained(item, wanted, depth - 1)
    elif depth and isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from contained(item, wanted, depth - 1)


def inside(optimizer: Any) -> list[Any]:
    """The optimizer and those that it wraps, from the outermost to the innermost; none for None."""
    found: list[Any] = []
    level = [] if optimizer is None else [optimizer]
    while level:
        fresh = [one for index, one in enumerate(level) if not any(one is other for other in [*found, *level[:index]])]
        found += fresh
        level = [other for one in fresh for other in _wrapped(one)]
    return found


def _wrapped(optimizer: Any) -> list[Any]:
    own = {name: value for name, value in attributes(optimizer).items() if name not in ("state", "param_groups")}
    return [other for other in contained(own, is_optimizer) if other is not optimizer]


def is_leaf(optimizer: Any) -> bool:
    """Whether it wraps no other."""
    return not _wrapped(optimizer)


def holds(optimizer: Any, weight: nn.Parameter) -> bool:
    """Whether a parameter is in one of its groups."""
    return any(param is weight for group in optimizer.param_groups for param in group["params"])


def described(optimizer: Any) -> str:
    """By its class, and those that it wraps."""
    return " around ".join(type(one).__name__ for one in inside(optimizer))


def _shares_out(optimizer: Any) -> bool:
    """Whether each parameter is trained by one rank, which sends it to the others at the end of its step."""
    return any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(optimizer).__mro__)


def check_kind(optimizer: Any) -> None:
    """Refuse optimizers whose state cannot follow a connection, whatever is in it.

    Raises:
        ValueError: names the class and what to do.
    """
    for one in inside(optimizer):
        kind = type(one).__name__
        if isinstance(one, torch.optim.LBFGS):
            raise ValueError(
                f"optimizer must keep its state parameter by parameter for it to be moved, got {kind}: its directions"
                " belong to all parameters together; rewire with another optimizer, such as torch.optim.SGD"
            )
        if kind == "PostLocalSGDOptimizer":
            raise ValueError(
                f"optimizer must keep the weights the same on every rank, got {kind}: between its averages each rank"
                " would rewire by weights of its own; rewire with DistributedDataParallel's averages of gradients"
            )
        if _shares_out(one) and getattr(one, "_overlap_with_ddp", False):
            raise ValueError(
                f"optimizer must take its steps in step() to be rewired, got {kind} with overlap_with_ddp=True; give"
                " overlap_with_ddp=False"
            )


def check_held(name: str, weight: nn.Parameter, optimizer: Any, act: str) -> None:
    """Refuse a weight that the optimizer does not train: its state would be lost.

    Raises:
        ValueError: names the layer.
    """
    everyone = inside(optimizer)
    backward = getattr(weight, "_in_backward_optimizers", [])
    if any(all(one is not other for other in everyone) for one in backward):
        raise ValueError(
            f"layer {name!r}: weight must be trained by the optimizer that is given, got one that"
            f" {type(backward[0]).__name__} trains within the backward pass; leave it out of"
            " _apply_optimizer_in_backward"
        )
    if optimizer is None:
        return
    if not holds(optimizer, weight):
        raise ValueError(
            f"layer {name!r}: optimizer must hold the weight of every layer that is {act}, got none for layer {name!r}:"
            " its state would be lost; give the optimizer that trains it, or the part of the model that this one trains"
        )
    shared_out = any(_shares_out(one) for one in everyone)
    if not shared_out and not any(holds(one, weight) for one in everyone if is_leaf(one)):
        raise ValueError(
            f"layer {name!r}: optimizer must train the weight itself, got {described(optimizer)}, which trains a copy"
            " of it; give an optimizer that takes the model's own parameters"
        )


def check_keeps_no_copy(name: str, weight: nn.Parameter, optimizer: Any) -> None:
    """Refuse an optimizer that knows the parameter by other means than its groups: another cannot take its place.

    Raises:
        ValueError: names the layer.
    """
    for one in inside(optimizer):
        lists = [group["params"] for group in one.param_groups]
        own = [
            (attribute, value)
            for attribute, value in attributes(one).items()
            if attribute not in ("state", "param_groups")
        ]
        for attribute, value in own:
            if any(value is each for each in lists):
                continue
            if any(True for _ in contained(value, lambda part: part is weight)):
                raise ValueError(
                    f"layer {name!r}: optimizer must know its parameters by its groups alone to be given another, got"
                    f" {type(one).__name__} with the weight in .{attribute}; resize before it is made"
                )


def _has_hooks(optimizer: Any) -> bool:
    """Whether ``register_step_post_hook`` is heeded: wrappers may inherit it without its parts."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return "_optimizer_step_post_hooks" in attributes(optimizer) and hasattr(type(optimizer).step, "hooked")
    return hasattr(optimizer, "register_step_post_hook")


def stepping(optimizer: Any, weights: Iterable[nn.Parameter]) -> Any:
    """The optimizer whose steps are the steps of the weights, and that tells of them by its hooks; or None.

    As a rule the innermost, for it makes no step where a wrapper makes none. Where ranks share the work out a step
    ends when everybody has everything, which the outer one knows.
    """
    usable = [one for one in inside(optimizer) if _has_hooks(one)]
    for one in usable:
        if _shares_out(one):
            return one
    leaves = [one for one in usable if is_leaf(one)]
    weights = list(weights)
    holding = [one for one in leaves if any(holds(one, weight) for weight in weights)] or leaves
    if len(holding) == 1:
        return holding[0]
    wrappers = [one for one in usable if not is_leaf(one)]
    return wrappers[-1] if wrappers else None
