"""How the ops take inputs of other layouts, as ``nn.Linear`` does: nested tensors and sparse ones.

A nested tensor's sequences lie behind one another in one buffer, which is a batch like any other. A sparse input
becomes dense: of two sparse operands only the layer's is worth a kernel.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.nested._internal.nested_tensor import NestedTensor

from .library import sparse_linear, sparse_linear_backward

__all__: list[str] = []

_library = torch.library.Library("dendnorm", "IMPL")
_SPARSE = ("SparseCPU", "SparseCUDA", "SparseCsrCPU", "SparseCsrCUDA")


def _nested(input: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    if not input.is_nested:
        raise RuntimeError("dendnorm::sparse_linear: only input may be a nested tensor, got a nested weight or bias")
    if isinstance(input, NestedTensor):
        ragged = input._ragged_idx
        if ragged == input.dim() - 1:
            raise RuntimeError("dendnorm::sparse_linear: the last dimension of a nested input must not be ragged")
        output = sparse_linear(input.values(), weight, *rest)
        return torch.nested.nested_tensor_from_jagged(output, input.offsets(), input.lengths(), ragged)
    input = input.contiguous()
    features = rest[2].shape[0] - 1  # ccol_indices
    sizes = input._nested_tensor_size()
    if len(sizes) and bool((sizes[:, -1] != features).any()):
        raise RuntimeError(
            f"dendnorm::sparse_linear: input must have {features} features in its last dimension, got a nested tensor"
            f" of shapes {sizes.tolist()}"
        )
    output = sparse_linear(input.values().view(-1, features), weight, *rest)
    outputs = output.shape[-1]
    changed = sizes.clone()
    changed[:, -1] = outputs
    strides = torch.ones_like(changed)
    strides[:, :-1] = changed[:, 1:].flip(1).cumprod(1).flip(1)
    lengths = changed.prod(1)
    return torch._nested_view_from_buffer(output.flatten(), changed, strides, lengths.cumsum(0) - lengths)


def _sparse(input: torch.Tensor, *rest: Any) -> torch.Tensor:
    return sparse_linear(input.to_dense(), *rest)


def _sparse_backward(grad_output: torch.Tensor, input: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    return sparse_linear_backward(grad_output.to_dense(), input.to_dense(), *rest)


with warnings.catch_warnings():
    # It replaces, on purpose, what the autograd kernel for all backends would do with a nested tensor.
    warnings.simplefilter("ignore")
    for _key in ("AutogradNestedTensor", "NestedTensorCPU", "NestedTensorCUDA"):
        _library.impl("sparse_linear", _nested, _key)
    for _key in _SPARSE:
        _library.impl("sparse_linear", _sparse, _key)
        _library.impl("sparse_linear_backward", _sparse_backward, _key)

# Inference mode leaves out the key of autograd, and a jagged tensor is then asked itself.
torch.library.register_torch_dispatch(
    "dendnorm::sparse_linear", NestedTensor, lambda mode, op, types, args, kwargs: _nested(*args, **(kwargs or {}))
)
