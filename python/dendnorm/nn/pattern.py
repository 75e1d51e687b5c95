"""Patterns of connections: what makes one sound, both its views, and who is connected to whom."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .._arguments import INT32_MAX
from ..ops import library as _ops

__all__ = ["MARKS", "Pattern", "check_view", "mark_of", "transposed"]


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
        if lowest < 0 or highest > INT32_MAX:
            raise ValueError(f"{name} must be in [0, 2^31), got {lowest if lowest < 0 else highest}")
    return values.to(torch.int32).contiguous()


def check_view(
    compressed: torch.Tensor, indices: torch.Tensor, segments: int, size: int, names: tuple[str, str]
) -> None:
    """Refuse indices that are no compressed view of (segments, size) positions: ValueError."""
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


def transposed(
    compressed: torch.Tensor, indices: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The other view of a pattern that is known to be sound, and for each of its entries the position in this one."""
    device = compressed.device
    if _ops.has_kernel("transpose_pattern", device):
        return _ops.transpose_pattern(compressed, indices, size, sound=True)
    pointers, others, perm = _ops.transpose_pattern(compressed.cpu(), indices.cpu(), size, sound=True)
    return pointers.to(device), others.to(device), perm.to(device)


MARKS = 8


def mark_of(ccol_indices: torch.Tensor, row_indices: torch.Tensor) -> torch.Tensor:
    """Eight whole numbers below 2^8, which every floating type holds, that tell a pattern from others: float64 (8,).

    The same on every device.
    """
    if ccol_indices.is_meta or row_indices.is_meta:
        return torch.empty(MARKS, dtype=torch.float64, device="meta")
    saved = ccol_indices.int(), row_indices.int()
    if _ops.has_kernel("pattern_mark", ccol_indices.device):
        return _ops.pattern_mark(*saved)
    return _ops.pattern_mark(*(tensor.cpu() for tensor in saved)).to(ccol_indices.device)


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
        check_view(ccol, row, cols, rows, ("ccol_indices", "row_indices"))
        return cls(ccol, row, *transposed(ccol, row, rows))

    @classmethod
    def from_csr(cls, crow_indices: torch.Tensor, col_indices: torch.Tensor, shape: tuple[int, int]) -> Pattern:
        """From the row view of a matrix of ``shape`` (M, N), int32 or int64; raises like ``from_csc``."""
        rows, cols = shape
        crow, col = _index("crow_indices", crow_indices), _index("col_indices", col_indices)
        check_view(crow, col, rows, cols, ("crow_indices", "col_indices"))
        ccol, row, _ = transposed(crow, col, cols)
        return cls(ccol, row, *transposed(ccol, row, rows))

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
        return cls(ccol, row, *transposed(ccol, row, rows))

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

    def __repr__(self) -> str:
        shape = f"out_features={self.out_features}, in_features={self.in_features}"
        return f"Pattern({shape}, nnz={self.nnz}, device={str(self.perm.device)!r})"
