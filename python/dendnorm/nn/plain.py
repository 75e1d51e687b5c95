"""A layer's ops in terms of PyTorch's own: what programs hold that run where dendnorm is not installed."""

from __future__ import annotations

import sys

import torch

__all__ = ["column_numbers", "effective_weight", "frozen_linear", "refuse_trace", "sparse_conv2d", "sparse_linear"]

_traced = torch._C._get_tracing_state  # each attribute on the way to it takes time at every call of a layer


def refuse_trace() -> None:
    """Refuse to be traced by ``torch.onnx.export(dynamo=False)``, which has no ONNX for sums at repeated indices.

    Raises:
        RuntimeError: in such a trace.
    """
    if _traced() is None or "torch.onnx" not in sys.modules or not torch.onnx.is_in_onnx_export():
        return
    raise RuntimeError(
        "sparse layers must be exported to ONNX with torch.onnx.export(..., dynamo=True), got dynamo=False; or make the"
        " model dense before: dendnorm.densify(model)"
    )


def _in_rows(
    weight: torch.Tensor,
    excitability: torch.Tensor | None,
    row: torch.Tensor,
    rows: int,
    a: float,
    b: float,
    p: float,
) -> torch.Tensor:
    """w_i = (e_i / (n_i^a ||v_i||_p^b)) v_i (Bird and Cuntz, Eq 1 to 6), in column order; ``row`` is int64."""
    factor = torch.ones(rows, dtype=weight.dtype, device=weight.device)
    if excitability is not None:
        factor = factor * excitability
    if a != 0:
        degrees = torch.zeros_like(factor).index_add(0, row, torch.ones_like(weight))
        factor = factor / degrees.clamp(min=1) ** a
    if b != 0:
        size = weight.abs()
        top = torch.zeros_like(factor).scatter_reduce(0, row, size, "amax")
        safe = torch.where(top > 0, top, torch.ones_like(top))
        # Divided first: powers of large values would overflow.
        power = torch.zeros_like(factor).index_add(0, row, (size / safe.index_select(0, row)) ** p)
        length = safe * torch.where(top > 0, power, torch.ones_like(power)) ** (1 / p)
        # A row of zeros has no direction, and its effective weights are 0.
        factor = torch.where(top > 0, factor / length**b, torch.zeros_like(factor))
    return weight * factor.index_select(0, row)


def effective_weight(
    weight: torch.Tensor,
    excitability: torch.Tensor | None,
    ccol_indices: torch.Tensor,
    row_indices: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    perm: torch.Tensor,
    a: float,
    b: float,
    p: float,
) -> torch.Tensor:
    return _in_rows(weight, excitability, row_indices.long(), crow_indices.shape[0] - 1, a, b, p)


def _dense(
    weight: torch.Tensor,
    excitability: torch.Tensor | None,
    pattern: tuple[torch.Tensor, ...],
    norm: tuple[float, float, float],
) -> torch.Tensor:
    """The effective weights as a dense matrix (M, N)."""
    ccol_indices, row_indices, crow_indices, col_indices, perm = pattern
    rows, cols = crow_indices.shape[0] - 1, ccol_indices.shape[0] - 1
    row = row_indices.long()
    effective = _in_rows(weight, excitability, row, rows, *norm)
    # The input neuron of each entry in row order, put into column order.
    col = torch.zeros_like(row).index_copy(0, perm.long(), col_indices.long())
    dense = torch.zeros(rows * cols, dtype=weight.dtype, device=weight.device)
    return dense.index_copy(0, row * cols + col, effective).view(rows, cols)


def sparse_linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    excitability: torch.Tensor | None,
    ccol_indices: torch.Tensor,
    row_indices: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    perm: torch.Tensor,
    a: float,
    b: float,
    p: float,
) -> torch.Tensor:
    """The dense weight, written once for a call, and a dense product: what every runtime has fast kernels for."""
    dense = _dense(weight, excitability, (ccol_indices, row_indices, crow_indices, col_indices, perm), (a, b, p))
    output = torch.matmul(input.to(weight.dtype), dense.t())  # sums in the dtype of the values, as the op's
    if bias is not None:
        output = output + bias
    return output.to(input.dtype)


def sparse_conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    excitability: torch.Tensor | None,
    ccol_indices: torch.Tensor,
    row_indices: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    perm: torch.Tensor,
    a: float,
    b: float,
    p: float,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """The dense filters, written once for a call, and a dense convolution."""
    dense = _dense(weight, excitability, (ccol_indices, row_indices, crow_indices, col_indices, perm), (a, b, p))
    filters = dense.unflatten(1, (-1, *kernel_size))
    top, bottom, left, right = padding
    images = torch.constant_pad_nd(input.to(weight.dtype), [left, right, top, bottom])
    return torch.conv2d(images, filters, bias, stride, 0, dilation, groups).to(input.dtype)


def column_numbers(col_indices: torch.Tensor) -> torch.Tensor:
    """The indices of a frozen layer as int32: int16 has the bits of unsigned numbers."""
    return col_indices.int() & 0xFFFF if col_indices.dtype == torch.int16 else col_indices.int()


def frozen_linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    in_features: int,
) -> torch.Tensor:
    """The same of a layer that only computes."""
    rows = crow_indices.shape[0] - 1
    # How many rows have begun at each entry, less one: a search, whose size does not depend on values.
    entries = torch.arange(weight.shape[0], device=weight.device)
    row = torch.searchsorted(crow_indices.long(), entries, right=True) - 1
    dense = torch.zeros(rows * in_features, dtype=weight.dtype, device=weight.device)
    dense = dense.index_copy(0, row * in_features + column_numbers(col_indices).long(), weight).view(rows, in_features)
    output = torch.matmul(input.to(weight.dtype), dense.t())
    if bias is not None:
        output = output + bias
    return output.to(input.dtype)
