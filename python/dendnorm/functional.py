"""The layer's computation without a module: patterns of connections, and the two functions of them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import _ops
from .norms import Norm, resolve

__all__ = ["Pattern", "effective_weight", "sparse_linear"]

_INT32_MAX = 2**31 - 1


def _index(name: str, values: torch.Tensor) -> torch.Tensor:
    """`values` as contiguous int32, without wrapping what does not fit."""
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
    if values.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be of dtype int32 or int64, got {values.dtype}")
    if values.dim() != 1:
        raise ValueError(f"{name} must have one dimension, got shape {tuple(values.shape)}")
    if values.dtype == torch.int64 and values.numel() and values.device.type != "meta":
        lowest, highest = (int(bound) for bound in values.aminmax())
        if lowest < 0 or highest > _INT32_MAX:
            raise ValueError(f"{name} must be in [0, 2^31), got {lowest if lowest < 0 else highest}")
    return values.to(torch.int32).contiguous()


def _checked(compressed: torch.Tensor, indices: torch.Tensor, segments: int, size: int, names: tuple[str, str]) -> None:
    if len(compressed) != segments + 1:
        raise ValueError(f"{names[0]} must have {segments} + 1 = {segments + 1} entries, got {len(compressed)}")
    if compressed.device != indices.device:
        raise ValueError(f"{names[0]} and {names[1]} must be on one device, got {compressed.device}, {indices.device}")
    if compressed.device.type == "meta":
        return
    if not _ops.has_kernel("check_pattern", compressed.device):
        compressed, indices = compressed.cpu(), indices.cpu()
    try:
        _ops.check_pattern(compressed, indices, size, *names)
    except RuntimeError as error:
        # The first line; what may follow is a trace through the C++ frames.
        raise ValueError(str(error).partition("\n")[0]) from None


def _transposed(
    compressed: torch.Tensor, indices: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The other view of a pattern that is known to be sound, and for each of its entries the position in this one."""
    device = compressed.device
    if _ops.has_kernel("transpose_pattern", device):
        return _ops.transpose_pattern(compressed, indices, size, sound=True)
    pointers, others, perm = _ops.transpose_pattern(compressed.cpu(), indices.cpu(), size, sound=True)
    return pointers.to(device), others.to(device), perm.to(device)


class Pattern(NamedTuple):
    """Which of the (M, N) connections exist: M output neurons, N input neurons, nnz connections.

    Five int32 tensors. Values come in column order: by input neuron, then by output neuron.

    Attributes:
        ccol_indices: (N + 1,), where the connections of each input neuron begin.
        row_indices: (nnz,), the output neuron of each connection, ascending within an input neuron.
        crow_indices: (M + 1,), where the connections of each output neuron begin in row order.
        col_indices: (nnz,), the input neuron of each connection, in row order.
        perm: (nnz,), the position in column order of each connection in row order: ``values[perm]`` is in row order.
    """

    ccol_indices: torch.Tensor
    row_indices: torch.Tensor
    crow_indices: torch.Tensor
    col_indices: torch.Tensor
    perm: torch.Tensor

    @classmethod
    def from_csc(cls, ccol_indices: torch.Tensor, row_indices: torch.Tensor, shape: tuple[int, int]) -> Pattern:
        """From the column view of a matrix of ``shape`` (M, N), int32 or int64.

        Raises:
            TypeError, ValueError: not indices, or not sorted, in range, unique and matching in length.
        """
        rows, cols = shape
        ccol, row = _index("ccol_indices", ccol_indices), _index("row_indices", row_indices)
        _checked(ccol, row, cols, rows, ("ccol_indices", "row_indices"))
        return cls(ccol, row, *_transposed(ccol, row, rows))

    @classmethod
    def from_csr(cls, crow_indices: torch.Tensor, col_indices: torch.Tensor, shape: tuple[int, int]) -> Pattern:
        """From the row view of a matrix of ``shape`` (M, N), int32 or int64; raises like ``from_csc``."""
        rows, cols = shape
        crow, col = _index("crow_indices", crow_indices), _index("col_indices", col_indices)
        _checked(crow, col, rows, cols, ("crow_indices", "col_indices"))
        ccol, row, _ = _transposed(crow, col, cols)
        return cls(ccol, row, *_transposed(ccol, row, rows))

    @classmethod
    def from_mask(cls, mask: torch.Tensor) -> Pattern:
        """From a dense bool tensor (M, N): a connection wherever it is True.

        Raises:
            TypeError, ValueError: not a bool tensor of two dimensions.
        """
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
        if mask.dim() != 2:
            raise ValueError(f"mask must have two dimensions, got shape {tuple(mask.shape)}")
        return cls._from_keys(mask.T.reshape(-1).nonzero().flatten(), *mask.shape)

    @classmethod
    def _from_keys(cls, keys: torch.Tensor, rows: int, cols: int) -> Pattern:
        """From ascending keys ``col * M + row``, int64."""
        starts = torch.arange(cols + 1, dtype=torch.int64, device=keys.device) * rows
        ccol = torch.searchsorted(keys, starts).to(torch.int32)
        row = (keys % max(rows, 1)).to(torch.int32)
        return cls(ccol, row, *_transposed(ccol, row, rows))

    @property
    def out_features(self) -> int:
        """M."""
        return len(self.crow_indices) - 1

    @property
    def in_features(self) -> int:
        """N."""
        return len(self.ccol_indices) - 1

    @property
    def nnz(self) -> int:
        """The number of connections."""
        return len(self.row_indices)

    def edges(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The output and the input neuron of each connection in column order: two int64 tensors (nnz,)."""
        columns = torch.arange(self.in_features, device=self.ccol_indices.device)
        col = torch.repeat_interleave(columns, self.ccol_indices.diff().long(), output_size=self.nnz)
        return self.row_indices.long(), col

    def clone(self) -> Pattern:
        """The same pattern with its own memory: one that a rewiring does not write into."""
        return Pattern(*(tensor.clone() for tensor in self))

    def to(self, device: torch.device | str) -> Pattern:
        """The same pattern on another device."""
        return Pattern(*(tensor.to(device) for tensor in self))


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
    return _ops.sparse_linear(input, weight, bias, excitability, *pattern, norm.a, norm.b, norm.p)


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
    return _ops.effective_weight(weight, excitability, *pattern, norm.a, norm.b, norm.p)
