"""How the ops act under ``torch.func.vmap``.

Leading dimensions of an input are a batch already, so a vmap over inputs alone joins them and runs one kernel. Where
each slice has a weight, bias, excitability or pattern of its own (an ensemble), or wants its own gradient of them (one
for each example), the slices are the blocks of one block-diagonal layer: one kernel again, differentiable like any
other call. Slices that are large enough to be worth a call each run one by one, which needs no copies of the pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .library import (
    effective_weight,
    effective_weight_backward,
    frozen_linear,
    sampled_product,
    sparse_conv2d,
    sparse_conv2d_backward,
    sparse_linear,
    sparse_linear_backward,
    transpose_pattern,
)

__all__ = ["joins"]

_INT32_MAX = 2**31 - 1
# Above so many multiply-adds in a slice, what its call costs is small beside them; elsewhere than on the CPU, where it
# was measured, a call is several launches. Above so many connections in all, the copies of the pattern would cost.
_WORK_OF_A_SLICE = {"cpu": 2**12}
_WORK_OF_A_LAUNCHED_SLICE = 2**18
_JOINED_CONNECTIONS = 2**24

Dims = Sequence[Any]


def joins(slices: int, connections: int, samples: int, features: int, device: str) -> bool:
    """Whether so many slices of a layer run as the blocks of one layer, and not one by one."""
    if slices * max(connections, features) > _INT32_MAX or slices * connections > _JOINED_CONNECTIONS:
        return False
    return connections * max(samples, 1) <= _WORK_OF_A_SLICE.get(device, _WORK_OF_A_LAUNCHED_SLICE)


def _only(in_dims: Dims, positions: tuple[int, ...]) -> bool:
    """Whether nothing but the arguments at `positions` is batched; the dimension of a list is itself a list."""
    return all(dim is None or index in positions or isinstance(dim, (list, tuple)) for index, dim in enumerate(in_dims))


def _leading(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _one_by_one(op: Callable, size: int, in_dims: Dims, args: tuple) -> tuple[Any, Any]:
    """Run `op` on every slice of whatever is batched and stack the results: right for any op."""

    def slices(value: Any, dim: Any) -> Sequence[Any]:
        if not isinstance(value, torch.Tensor) or dim is None:
            return [value] * size
        parts = value.unbind(dim)  # whose gradient is one stack, where that of select() is a whole tensor for each
        return parts if value.is_floating_point() else [part.contiguous() for part in parts]

    results = [op(*each) for each in zip(*map(slices, args, in_dims), strict=True)]
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(list(parts)) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


class _Blocks:
    """The slices of a vmap as one block-diagonal layer of E M outputs, E N inputs and E nnz connections."""

    def __init__(self, size: int, in_dims: Dims, pattern: tuple) -> None:
        self.size = size
        ccol, row, crow, col, perm = (_leading(tensor, dim, size) for tensor, dim in zip(pattern, in_dims, strict=True))
        self.inputs, self.outputs, self.connections = ccol.shape[1] - 1, crow.shape[1] - 1, row.shape[1]
        number = torch.arange(size, dtype=torch.int32, device=row.device).unsqueeze(1)

        def moved(tensor: torch.Tensor, step: int) -> torch.Tensor:
            return (tensor + number * step).reshape(-1)

        def pointers(tensor: torch.Tensor) -> torch.Tensor:
            end = tensor.new_full((1,), size * self.connections)
            return torch.cat([moved(tensor[:, :-1], self.connections), end])

        self.pattern = (
            pointers(ccol), moved(row, self.outputs), pointers(crow), moved(col, self.inputs),
            moved(perm, self.connections),
        )  # fmt: skip

    def activations(self, tensor: torch.Tensor, dim: int | None) -> torch.Tensor:
        """(E, *, N) as (*, E N)."""
        return _leading(tensor, dim, self.size).movedim(0, -2).flatten(-2)

    def vector(self, tensor: torch.Tensor | None, dim: int | None) -> torch.Tensor | None:
        return None if tensor is None else _leading(tensor, dim, self.size).flatten()

    def excitability(self, e: torch.Tensor | None, dim: int | None) -> torch.Tensor | None:
        """One for each output neuron of each slice, whatever it was."""
        if e is None:
            return None
        e = _leading(e, dim, self.size)
        e = e.unsqueeze(1) if e.dim() == 1 else e
        return e.expand(self.size, self.outputs).flatten()

    def split(self, activations: torch.Tensor, features: int) -> tuple[torch.Tensor, int]:
        """(*, E M) as slices, and where their dimension is."""
        return activations.unflatten(-1, (self.size, features)), activations.dim() - 1

    def excitability_gradient(self, gradient: torch.Tensor, e: torch.Tensor, dim: int | None) -> torch.Tensor:
        """(E M,) as (E, *), * being the shape of a slice's e."""
        shape = [size for d, size in enumerate(e.shape) if dim is None or d != dim % e.dim()]
        rows = gradient.reshape(self.size, self.outputs)
        shared = not shape or shape == [1]
        return (rows.sum(1) if shared else rows).reshape(self.size, *shape)


def _blocks(size: int, in_dims: Dims, args: tuple, pattern: int, activations: int | None = None) -> _Blocks | None:
    """The slices as blocks, or None where they run one by one. `pattern` is where its five tensors begin in `args`."""
    tensors, dims = args[pattern : pattern + 5], in_dims[pattern : pattern + 5]

    def length(index: int) -> int:
        return tensors[index].numel() // (1 if dims[index] is None else max(size, 1))

    connections, features = length(1), max(length(0), length(2))
    samples = 1
    if activations is not None:
        each = args[activations].numel() // (1 if in_dims[activations] is None else max(size, 1))
        samples = each // max(length(0) - 1, 1)
    if size and not joins(size, connections, samples, features, tensors[0].device.type):
        return None
    return _Blocks(size, dims, tensors)


@torch.library.register_vmap("dendnorm::sparse_linear")
def _sparse_linear(info: Any, in_dims: Dims, *args: Any) -> tuple[torch.Tensor, int]:
    size = info.batch_size
    if _only(in_dims, (0,)):
        return sparse_linear(_leading(args[0], in_dims[0], size), *args[1:]), 0
    blocks = _blocks(size, in_dims, args, pattern=4, activations=0)
    if blocks is None:
        return _one_by_one(sparse_linear, size, in_dims, args)
    output = sparse_linear(
        blocks.activations(args[0], in_dims[0]),
        blocks.vector(args[1], in_dims[1]),
        blocks.vector(args[2], in_dims[2]),
        blocks.excitability(args[3], in_dims[3]),
        *blocks.pattern,
        *args[9:],
    )
    return blocks.split(output, blocks.outputs)


@torch.library.register_vmap("dendnorm::frozen_linear")
def _frozen_linear(info: Any, in_dims: Dims, *args: Any) -> tuple[torch.Tensor, int]:
    if _only(in_dims, (0,)):
        return frozen_linear(_leading(args[0], in_dims[0], info.batch_size), *args[1:]), 0
    return _one_by_one(frozen_linear, info.batch_size, in_dims, args)


@torch.library.register_vmap("dendnorm::sparse_linear_backward")
def _sparse_linear_backward(info: Any, in_dims: Dims, *args: Any) -> tuple[tuple, tuple]:
    size, mask = info.batch_size, args[-1]
    if not any(mask[1:]) and _only(in_dims, (0, 1)):
        grad_output, input = (_leading(args[i], in_dims[i], size) for i in (0, 1))
        return sparse_linear_backward(grad_output, input, *args[2:]), (0 if mask[0] else None, None, None, None)
    blocks = _blocks(size, in_dims, args, pattern=4, activations=1)
    if blocks is None:
        return _one_by_one(sparse_linear_backward, size, in_dims, args)
    e = args[3]
    dx, dv, db, de = sparse_linear_backward(
        blocks.activations(args[0], in_dims[0]),
        blocks.activations(args[1], in_dims[1]),
        blocks.vector(args[2], in_dims[2]),
        blocks.excitability(e, in_dims[3]),
        *blocks.pattern,
        *args[9:],
    )
    dx, dx_dim = blocks.split(dx, blocks.inputs) if mask[0] else (dx, None)
    dv, dv_dim = (dv.reshape(size, blocks.connections), 0) if mask[1] else (dv, None)
    db, db_dim = (db.reshape(size, blocks.outputs), 0) if mask[2] else (db, None)
    wanted = mask[3] and e is not None
    de, de_dim = (blocks.excitability_gradient(de, e, in_dims[3]), 0) if wanted else (de, None)
    return (dx, dv, db, de), (dx_dim, dv_dim, db_dim, de_dim)


@torch.library.register_vmap("dendnorm::effective_weight")
def _effective_weight(info: Any, in_dims: Dims, *args: Any) -> tuple[torch.Tensor, int]:
    size = info.batch_size
    blocks = _blocks(size, in_dims, args, pattern=2)
    if blocks is None:
        return _one_by_one(effective_weight, size, in_dims, args)
    weight, e = blocks.vector(args[0], in_dims[0]), blocks.excitability(args[1], in_dims[1])
    return effective_weight(weight, e, *blocks.pattern, *args[7:]).reshape(size, blocks.connections), 0


@torch.library.register_vmap("dendnorm::effective_weight_backward")
def _effective_weight_backward(info: Any, in_dims: Dims, *args: Any) -> tuple[tuple, tuple]:
    size, mask = info.batch_size, args[-1]
    blocks = _blocks(size, in_dims, args, pattern=3)
    if blocks is None:
        return _one_by_one(effective_weight_backward, size, in_dims, args)
    grad, weight = (blocks.vector(args[i], in_dims[i]) for i in (0, 1))
    e = args[2]
    dv, de = effective_weight_backward(grad, weight, blocks.excitability(e, in_dims[2]), *blocks.pattern, *args[8:])
    dv, dv_dim = (dv.reshape(size, blocks.connections), 0) if mask[0] else (dv, None)
    wanted = mask[1] and e is not None
    de, de_dim = (blocks.excitability_gradient(de, e, in_dims[2]), 0) if wanted else (de, None)
    return (dv, de), (dv_dim, de_dim)


@torch.library.register_vmap("dendnorm::sampled_product")
def _sampled_product(info: Any, in_dims: Dims, *args: Any) -> tuple[torch.Tensor, int]:
    size = info.batch_size
    blocks = _blocks(size, in_dims, args, pattern=2, activations=1)
    if blocks is None:
        return _one_by_one(sampled_product, size, in_dims, args)
    rows, columns = (blocks.activations(args[i], in_dims[i]) for i in (0, 1))
    return sampled_product(rows, columns, *blocks.pattern).reshape(size, blocks.connections), 0


@torch.library.register_vmap("dendnorm::transpose_pattern")
def _transpose_pattern(info: Any, in_dims: Dims, *args: Any, sound: bool = False) -> tuple[tuple, tuple]:
    return _one_by_one(partial(transpose_pattern, sound=sound), info.batch_size, in_dims, args)


@torch.library.register_vmap("dendnorm::sparse_conv2d")
def _sparse_conv2d(info: Any, in_dims: Dims, *args: Any) -> tuple[torch.Tensor, int]:
    size = info.batch_size
    if not _only(in_dims, (0,)):
        return _one_by_one(sparse_conv2d, size, in_dims, args)
    images = _leading(args[0], in_dims[0], size)
    output = sparse_conv2d(images.flatten(0, 1), *args[1:])
    return output.unflatten(0, images.shape[:2]), 0


@torch.library.register_vmap("dendnorm::sparse_conv2d_backward")
def _sparse_conv2d_backward(info: Any, in_dims: Dims, *args: Any) -> tuple[tuple, tuple]:
    size, mask = info.batch_size, args[-1]
    if any(mask[1:]) or not _only(in_dims, (0, 1)):
        return _one_by_one(sparse_conv2d_backward, size, in_dims, args)
    grad_output, images = (_leading(args[i], in_dims[i], size) for i in (0, 1))
    dx, *rest = sparse_conv2d_backward(grad_output.flatten(0, 1), images.flatten(0, 1), *args[2:])
    if mask[0]:
        dx = dx.unflatten(0, images.shape[:2])
    return (dx, *rest), (0 if mask[0] else None, None, None, None)
