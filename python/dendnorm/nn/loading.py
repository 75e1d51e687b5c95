"""What keeps a layer's state from being loaded, found before anything has changed."""

from __future__ import annotations

from typing import Any

import torch

from .._arguments import INT32_MAX
from ..ops import library as _ops
from .marks import MARK, SAVED, same_marks
from .spread import is_spread

__all__ = ["problem_of_state"]


def problem_of_state(
    layer: Any, state_dict: dict[str, Any], prefix: str, strict: bool, assign: bool
) -> tuple[str | None, torch.Tensor | None]:
    """What keeps a state_dict from being loaded, found before anything has changed; the mark of its pattern."""
    own: dict[str, torch.Tensor] = {name: tensor for name, tensor in layer.named_parameters()}
    own |= {name: getattr(layer, name) for name in SAVED}
    given = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
    if not given:
        return None, None  # missing as any module's may be: load_state_dict(strict=False) lets it
    if not given.keys() & {"weight", *SAVED}:  # a bias belongs to no connection
        problems = (_problem_of_tensor(name, tensor, own[name], assign) for name, tensor in given.items())
        return next((problem for problem in problems if problem is not None), None), None
    missing = [name for name in own if name not in given]
    # Values belong to the pattern that they were saved with.
    patterned = any(name in given for name in SAVED)
    if missing and (strict or (patterned and {"weight", *SAVED} & set(missing))):
        return f"the state_dict must hold {', '.join(prefix + name for name in own)}, got none of {missing}", None
    for name, tensor in given.items():
        problem = _problem_of_tensor(name, tensor, own[name], assign)
        if problem is not None:
            return problem, None
        if name in SAVED and tensor.is_floating_point():
            given[name] = state_dict[prefix + name] = tensor.round().to(torch.int32)
    if not patterned:
        return None, None
    problem = layer._problem_of_pattern(given["ccol_indices"], given["row_indices"])
    if problem is not None:
        return problem, None
    found = _ops.pattern_mark(given["ccol_indices"], given["row_indices"])
    mark = None if found.is_meta or layer.row_indices.is_meta else state_dict.get(prefix + MARK)
    return _problem_of_mark(mark, found), found


def _problem_of_tensor(name: str, tensor: Any, own: torch.Tensor, assign: bool) -> str | None:
    if not isinstance(tensor, torch.Tensor):
        return f"{name} must be a tensor, got {type(tensor).__name__}"
    if is_spread(own) and not is_spread(tensor):
        return (
            f"{name} must be sharded as the layer's is, got a {type(tensor).__name__}; load it with"
            " torch.distributed.checkpoint.state_dict.set_model_state_dict (full_state_dict=True for whole tensors)"
        )
    if tensor.shape != own.shape:
        hint = f"; build the layer with nnz={tensor.numel()}" if name in ("weight", "row_indices") else ""
        return f"{name} must have shape {tuple(own.shape)}, got {tuple(tensor.shape)}{hint}"
    if name in SAVED:
        if tensor.is_floating_point():  # an average of equal patterns
            whole = tensor.round()
            if not bool((tensor == whole).all()) or bool((whole.abs() > INT32_MAX).any()):
                return f"{name} must hold whole numbers, got an average of different patterns"
    elif tensor.dtype not in (torch.float32, torch.float64) and (assign or not tensor.is_floating_point()):
        return f"{name} must be of dtype float32 or float64, got {tensor.dtype}"
    return None


def _problem_of_mark(mark: Any, found: torch.Tensor) -> str | None:
    if mark is None:
        return None
    if not isinstance(mark, torch.Tensor) or mark.shape != found.shape:
        return f"{MARK} must be a tensor of shape ({_ops.MARKS},), got {getattr(mark, 'shape', type(mark).__name__)}"
    if mark.is_meta or same_marks(mark, found):
        return None
    return f"{MARK} must be that of the pattern, got another: the state is a mixture of different patterns"
