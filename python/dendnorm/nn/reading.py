"""Who reads a sparse layer's weight from outside, and what for.

``F.linear(x, self.qkv.weight)`` in another module's ``forward`` takes the weight for a matrix; a sparse layer's is the
values of its connections. Such code is handed these values as a tensor that knows it: asked for its dtype or its sum it
answers as any other, taken for a matrix it says which layer it belongs to, who read it, and what to do.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["handed_out", "refuse_matrix_function"]


def _getter(name: str) -> Any:
    return getattr(torch.Tensor, name).__get__


# What takes a tensor for a matrix, and might find values that happen to fit.
_OF_MATRICES = {
    nn.functional.linear, nn.functional.bilinear, nn.functional.embedding, torch.addmm, torch.addmv, torch.baddbmm,
    torch.bmm, torch.einsum, torch.matmul, torch.mm, torch.mv, torch.t, torch.tensordot, torch.transpose,
    _getter("T"), torch.Tensor.__matmul__, torch.Tensor.__rmatmul__, torch.Tensor.addmm, torch.Tensor.addmv,
    torch.Tensor.bmm, _getter("mT"), torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.mv, torch.Tensor.t,
    torch.Tensor.transpose,
}  # fmt: skip
# What gives the same values on, to be taken for a matrix there.
_CARRIED = {
    torch.cat, torch.clone, torch.detach, torch.narrow, torch.chunk, torch.split, torch.stack, torch.mul,
    torch.Tensor.__getitem__, torch.Tensor.__mul__, torch.Tensor.__neg__, torch.Tensor.__rmul__, torch.Tensor.bfloat16,
    torch.Tensor.chunk, torch.Tensor.clone, torch.Tensor.contiguous, torch.Tensor.cpu, _getter("data"),
    torch.Tensor.detach, torch.Tensor.double, torch.Tensor.float, torch.Tensor.half, torch.Tensor.mul,
    torch.Tensor.narrow, torch.Tensor.split, torch.Tensor.to, torch.Tensor.type, torch.Tensor.type_as,
}  # fmt: skip
# What the values in hand, a view of the parameter, would answer in another way.
_OF_THE_PARAMETER = {_getter("grad"), _getter("is_leaf")}
# Those who move, save and wrap parameters; of torch, attention alone takes another layer's weight.
_KEEPERS = {"accelerate", "bitsandbytes", "deepspeed", "dendnorm", "lightning", "lightning_fabric", "peft",
            "pytorch_lightning", "safetensors", "torch", "torchao"}  # fmt: skip
_LAYERS = ("torch.nn.modules.activation", "torch.nn.functional")
_UTILITIES = ("torch.nn.utils.",)
_REFUSED = {"orthogonal", "spectral_norm", "weight_norm", "ln_structured", "random_structured"}


class _Values(torch.Tensor):
    """The values of a layer's connections, in the hands of another module."""

    _is_param = True  # for isinstance(weight, nn.Parameter)
    _owner: tuple[nn.Module, nn.Parameter, str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        own = _first(cls, (args, kwargs))
        parameter = own._owner[1]
        if func in _OF_THE_PARAMETER:
            return func(parameter)
        elif func in _OF_MATRICES and not _of_vectors(func, args):
            raise _taken_for_a_matrix(own, func) from None
        with torch._C.DisableTorchFunctionSubclass():
            try:
                result = func(*args, **kwargs)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                if isinstance(error, torch.OutOfMemoryError) or _writes(func):
                    raise
                raise _taken_for_a_matrix(own, func) from error
        if func in _CARRIED:
            return tree_map_only(torch.Tensor, lambda tensor: _handed(tensor, own._owner), result)
        return result


def _first(cls: type, tree: Any) -> Any:
    return next(leaf for leaf in tree_leaves(tree) if isinstance(leaf, cls))


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _of_vectors(func: Any, args: tuple) -> bool:
    """A product of two vectors, which values may well be."""
    return func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__) and all(
        isinstance(each, torch.Tensor) and each.dim() == 1 for each in args
    )


def _handed(tensor: torch.Tensor, owner: tuple) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        values = tensor.as_subclass(_Values)
    values._owner = owner
    return values


def _taken_for_a_matrix(values: _Values, func: Any) -> ValueError:
    layer, _, reader = values._owner
    name = _name_of(layer)
    what = getattr(func, "__name__", str(func))
    return ValueError(
        f"weight of {name or 'a layer'} must not be taken for a matrix, as {reader} does ({what}): it is a"
        f" {type(layer).__name__}, whose weight is the values of its {layer.nnz} connections. Leave it dense:"
        f" dendnorm.sparsify(model, ..., skip=[{name or 'its name'!r}]), or dendnorm.densify"
    )


def _name_of(layer: nn.Module) -> str:
    """In the outermost model that is being called."""
    name, frame = "", sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is _CALL:
            model = frame.f_locals["self"]
            name = next((name for name, module in model.named_modules() if module is layer), name)
    return name


_CALL = nn.Module._call_impl.__code__


def handed_out(layer: nn.Module, weight: Any) -> Any:
    """A layer's weight as the caller's caller may have it: within another module's call, values that know it."""
    reader = sys._getframe(2)
    while reader.f_back is not None and _module(reader) == "torch.nn.modules.module":  # get_parameter
        reader = reader.f_back
    where = _module(reader)
    if type(weight) is not nn.Parameter or (where.partition(".")[0] in _KEEPERS and where not in _LAYERS):
        return weight
    frame: FrameType | None = reader
    while frame is not None and frame.f_code is not _CALL:
        frame = frame.f_back
    if frame is None or frame.f_locals["self"] is layer:
        return weight
    return _handed(weight, (layer, weight, reader.f_code.co_qualname))


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def refuse_matrix_function(layer: nn.Module) -> None:
    """Refuse what of ``torch.nn.utils`` is made for a matrix, where it reads the weight.

    Raises:
        ValueError: spectral_norm, weight_norm, orthogonal, or pruning of whole rows.
    """
    frame: FrameType | None = sys._getframe(2)
    if not _module(frame).startswith(_UTILITIES):  # type: ignore[arg-type]
        return
    for _ in range(5):  # with wrappers that warn of what is deprecated
        name = frame.f_code.co_name if frame is not None and _module(frame).startswith(_UTILITIES) else ""
        if name in _REFUSED:
            raise ValueError(
                f"{type(layer).__name__}: weight must not be computed by {name}, which is made for a matrix: a sparse"
                f" layer's weight is ({layer.nnz},), the values of its connections."
                + (' norm="weight_norm" normalises each row;' if name == "weight_norm" else "")
                + " dendnorm.densify(model) or to_dense() have a matrix"
            )
        frame = frame.f_back if frame is not None else None
