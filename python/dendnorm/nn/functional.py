"""The layers' computation without a module: functions of values and a pattern."""

from __future__ import annotations

import torch

from ..ops import library as _ops
from .norms import Norm, resolve
from .pattern import Pattern
from .plain import refuse_trace
from .window import Sizes, Window

__all__ = ["Pattern", "effective_weight", "sparse_conv2d", "sparse_linear"]


def _family(norm: Norm | str | None, excitability: torch.Tensor | None) -> tuple[Norm, torch.Tensor | None]:
    norm = resolve(norm)
    return norm, norm.excitability if excitability is None else excitability


def sparse_linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    pattern: Pattern,
    bias: torch.Tensor | None = None,
    norm: Norm | str | None = None,
    excitability: torch.Tensor | None = None,
) -> torch.Tensor:
    """``input @ W.T + bias``, where row i of the sparse W is w_i = (e_i / (n_i^a ||v_i||_p^b)) v_i.

    Bird and Cuntz, "Dendritic normalisation improves learning in sparsely connected artificial neural networks",
    Eq 1 to 6. Differentiable any number of times in every floating-point argument, in reverse and in forward mode.

    Args:
        input: (*, N). With a float32 weight: float32, bfloat16 or float16; with a float64 weight: float64.
        weight: (nnz,), the raw values v in column order; float32 or float64.
        pattern: which connections exist.
        bias: (M,), of weight's dtype.
        norm: a ``Norm``, its string form, or None for no normalisation.
        excitability: e, of weight's dtype: shape () or (1,) for all neurons, (M,) for each. None takes the one that
            the norm object holds, and 1 where it holds none.

    Returns:
        (*, M), of input's dtype; sums are accumulated in weight's dtype.

    Raises:
        ValueError, TypeError: an unknown norm.
        RuntimeError: shapes, dtypes or devices that do not fit; names the argument, what was expected and what came.
    """
    norm, excitability = _family(norm, excitability)
    refuse_trace()
    return _ops.sparse_linear(input, weight, bias, excitability, *pattern, norm.a, norm.b, norm.p)


def sparse_conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    pattern: Pattern,
    kernel_size: Sizes,
    bias: torch.Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    norm: Norm | str | None = None,
    excitability: torch.Tensor | None = None,
) -> torch.Tensor:
    """The convolution of images with filters whose taps are w_i = (e_i / (n_i^a ||v_i||_p^b)) v_i.

    Differentiable as ``sparse_linear``, which has its source, too; the other arguments are those of ``F.conv2d``.

    Args:
        input: (B, C, H, W), of a dtype as for ``sparse_linear``.
        weight: (nnz,), the raw values v in column order; float32 or float64.
        pattern: M filters as outputs by (C / groups) kh kw taps as inputs, tap (c, y, x) being (c kh + y) kw + x.
        bias, norm, excitability: as for ``sparse_linear``.

    Returns:
        (B, M, H', W'), of input's dtype, and in memory in its order: samples or channels innermost, or contiguous.

    Raises:
        ValueError, TypeError, RuntimeError: an argument that does not fit; names it, what was expected and what came.
    """
    norm, excitability = _family(norm, excitability)
    window = Window.of(2, kernel_size, stride, padding, dilation, "zeros").of_op(groups, padded=False)
    return _ops.sparse_conv2d(input, weight, bias, excitability, *pattern, norm.a, norm.b, norm.p, *window)


def effective_weight(
    weight: torch.Tensor,
    pattern: Pattern,
    norm: Norm | str | None = None,
    excitability: torch.Tensor | None = None,
) -> torch.Tensor:
    """The values w = (e_i / (n_i^a ||v_i||_p^b)) v that a layer acts with: (nnz,), in the order of weight.

    Differentiable; arguments and errors are those of ``sparse_linear``.
    """
    norm, excitability = _family(norm, excitability)
    refuse_trace()
    return _ops.effective_weight(weight, excitability, *pattern, norm.a, norm.b, norm.p)
