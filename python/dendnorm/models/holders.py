"""Who holds a layer besides the model's modules: lists, dicts, closures and objects that a module keeps.

What is replaced in a model would go on there as it was, computed with and not trained.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

__all__ = ["holders"]

_DEPTH = 6
# What nn.Module keeps itself; hooks may hold a layer as anything else may.
_OWN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


def holders(model: nn.Module, layers: Iterable[nn.Module]) -> dict[int, str]:
    """For the ``id`` of each layer that is held elsewhere, where: ``Attention.projections``."""
    wanted = {id(layer) for layer in layers}
    found: dict[int, str] = {}
    for module in model.modules():
        if id(module) in wanted:
            continue  # what it keeps of itself goes with it
        for name, value in vars(module).items():
            if name not in _OWN:
                for key in _held(value, wanted, set(), 0):
                    found.setdefault(key, f"{type(module).__name__}.{name}")
    return found


def _held(value: Any, wanted: set[int], seen: set[int], depth: int) -> Iterator[int]:
    if id(value) in wanted:
        yield id(value)
    elif depth < _DEPTH and id(value) not in seen:
        seen.add(id(value))
        for each in _within(value):
            yield from _held(each, wanted, seen, depth + 1)


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value.values(), *(key for key in value if isinstance(key, nn.Module))]
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, (type, types.ModuleType, nn.Module, str, bytes, int, float, complex)):
        return ()  # a module's own are looked at where it is in the model
    return vars(value).values() if hasattr(value, "__dict__") else ()
