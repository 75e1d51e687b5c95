"""The compiled ops, ``torch.ops.dendnorm.*``: loading them, and how they act under ``torch.func.vmap``.

Batching rules. The leading dimensions of an input are a batch already, so a vmap over inputs alone joins them and runs
one kernel. Whatever sums over the batch (the gradients of weight, bias and excitability), and whatever has its own
weights or pattern for each slice (an ensemble), runs once for each slice and is stacked.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        f"dendnorm: the compiled module dendnorm._C could not be loaded ({error}). Build it against the installed torch"
        f" ({torch.__version__}) with `pip install --no-build-isolation .` in a checkout of dendnorm."
    ) from error

__all__ = [
    "assign_",
    "build_info",
    "carry_",
    "check_pattern",
    "counter_normal",
    "cpu_capability",
    "effective_weight",
    "empty_positions",
    "excise",
    "has_kernel",
    "raise_fault",
    "replace_connections",
    "sparse_linear",
    "transpose_pattern",
    "weakest",
]

# The overload itself: resolving the packet anew costs more than a microsecond on every call.
sparse_linear = torch.ops.dendnorm.sparse_linear.default
sparse_linear_backward = torch.ops.dendnorm.sparse_linear_backward.default
effective_weight = torch.ops.dendnorm.effective_weight.default
effective_weight_backward = torch.ops.dendnorm.effective_weight_backward.default
sampled_product = torch.ops.dendnorm.sampled_product.default
check_pattern = torch.ops.dendnorm.check_pattern.default
transpose_pattern = torch.ops.dendnorm.transpose_pattern.default
empty_positions = torch.ops.dendnorm.empty_positions.default
counter_normal = torch.ops.dendnorm.counter_normal.default
weakest = torch.ops.dendnorm.weakest.default
excise = torch.ops.dendnorm.excise.default
replace_connections = torch.ops.dendnorm.replace_connections.default
carry_ = torch.ops.dendnorm.carry_.default
assign_ = torch.ops.dendnorm.assign_.default
raise_fault = torch.ops.dendnorm.raise_fault.default


def has_kernel(op: str, device: torch.device) -> bool:
    """Whether this build has a kernel of ``dendnorm::op`` for a device."""
    key = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}.get(device.type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"dendnorm::{op}", key)


def build_info() -> dict[str, Any]:
    """How the compiled module was built: version, torch, compiler, build_type, cuda (None: without)."""
    return dict(_C.build_info())


def cpu_capability() -> str:
    """The instruction set that the CPU kernels use: "default", "avx2" or "avx512"."""
    return _C.cpu_capability()


# For torch.utils.flop_counter: 2 for each multiply-add, as its own formulas count.


@register_flop_formula(torch.ops.dendnorm.sparse_linear)
def _sparse_linear_flops(input: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * math.prod(input[:-1]) * weight[0]


@register_flop_formula(torch.ops.dendnorm.sparse_linear_backward)
def _sparse_linear_backward_flops(grad_output: Any, input: Any, weight: Any, *rest: Any, out_shape: Any = None) -> int:
    return 2 * math.prod(input[:-1]) * weight[0] * sum(rest[-1][:2])


def _leading(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _for_each_slice(op: Any, info: Any, in_dims: tuple, args: tuple) -> tuple[Any, Any]:
    """Run `op` on every slice of whatever is batched and stack the results: right for any op."""

    def argument(value: Any, dim: int | None, index: int) -> Any:
        if not isinstance(value, torch.Tensor) or dim is None:
            return value
        if info.batch_size == 0:  # no slice to take; the op still says which shapes come out
            return value.new_zeros([size for d, size in enumerate(value.shape) if d != dim % value.dim()])
        part = value.select(dim, index)
        return part if part.is_floating_point() else part.contiguous()  # as the ops want a pattern

    dims = [dim if isinstance(value, torch.Tensor) else None for value, dim in zip(args, in_dims, strict=True)]
    slices = [
        op(*(argument(value, dim, index) for value, dim in zip(args, dims, strict=True)))
        for index in range(max(info.batch_size, 1))
    ]

    def stack(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(parts)[: info.batch_size]

    if isinstance(slices[0], torch.Tensor):
        return stack(slices), 0
    results = tuple(stack(list(parts)) for parts in zip(*slices, strict=True))
    return results, (0,) * len(results)


def _only(in_dims: tuple, positions: tuple[int, ...]) -> bool:
    """Whether nothing but the arguments at `positions` is batched; the dimension of a list is itself a list."""
    return all(dim is None or index in positions or isinstance(dim, (list, tuple)) for index, dim in enumerate(in_dims))


@torch.library.register_vmap("dendnorm::sparse_linear")
def _sparse_linear_vmap(info, in_dims, *args):
    if not _only(in_dims, (0,)):
        return _for_each_slice(sparse_linear, info, in_dims, args)
    return sparse_linear(_leading(args[0], in_dims[0], info.batch_size), *args[1:]), 0


@torch.library.register_vmap("dendnorm::sparse_linear_backward")
def _sparse_linear_backward_vmap(info, in_dims, *args):
    output_mask = args[-1]
    if any(output_mask[1:]) or not _only(in_dims, (0, 1)):
        return _for_each_slice(sparse_linear_backward, info, in_dims, args)
    grad_output, input = (_leading(args[i], in_dims[i], info.batch_size) for i in (0, 1))
    results = sparse_linear_backward(grad_output, input, *args[2:])
    return results, (0 if output_mask[0] else None, None, None, None)


@torch.library.register_vmap("dendnorm::effective_weight")
def _effective_weight_vmap(info, in_dims, *args):
    return _for_each_slice(effective_weight, info, in_dims, args)


@torch.library.register_vmap("dendnorm::effective_weight_backward")
def _effective_weight_backward_vmap(info, in_dims, *args):
    return _for_each_slice(effective_weight_backward, info, in_dims, args)


@torch.library.register_vmap("dendnorm::sampled_product")
def _sampled_product_vmap(info, in_dims, *args):
    return _for_each_slice(sampled_product, info, in_dims, args)
