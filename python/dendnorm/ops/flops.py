"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the ops: 2 nnz B for each product with B samples.

As for PyTorch's own matrix products, a multiply-add is two operations, and what is small beside the products (bias,
factors, the gradient of the normalisation) is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import library  # noqa: F401  loads the ops

__all__ = ["product"]

_ops = torch.ops.dendnorm


def product(activations: Sequence[int], connections: Sequence[int]) -> int:
    """One product of nnz connections with activations of this shape, (*, features)."""
    return 2 * connections[0] * math.prod(activations[:-1])


@register_flop_formula(_ops.sparse_linear)
def _sparse_linear(input: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return product(input, weight)


@register_flop_formula(_ops.sparse_linear_backward)
def _sparse_linear_backward(grad_output: Sequence[int], input: Sequence[int], weight: Sequence[int], *rest: Any,
                            **__: Any) -> int:  # fmt: skip
    to_input, to_weight, _, to_excitability = rest[-1]
    return (bool(to_input) + bool(to_weight or to_excitability)) * product(grad_output, weight)


@register_flop_formula(_ops.frozen_linear)
def _frozen_linear(input: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return product(input, weight)


@register_flop_formula(_ops.sampled_product)
def _sampled_product(rows: Sequence[int], columns: Sequence[int], ccol: Any, row: Sequence[int], *_: Any,
                     **__: Any) -> int:  # fmt: skip
    return product(rows, row)


def convolution(images: Sequence[int], connections: Sequence[int]) -> int:
    """One product of nnz connections at every position of the output, (B, M, H, W)."""
    return 2 * connections[0] * images[0] * images[2] * images[3]


@register_flop_formula(_ops.sparse_conv2d)
def _sparse_conv2d(input: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return convolution(out_shape, weight)


@register_flop_formula(_ops.sparse_conv2d_backward)
def _sparse_conv2d_backward(grad_output: Sequence[int], input: Sequence[int], weight: Sequence[int], *rest: Any,
                            **__: Any) -> int:  # fmt: skip
    to_input, to_weight, _, to_excitability = rest[-1]
    return (bool(to_input) + bool(to_weight or to_excitability)) * convolution(grad_output, weight)
