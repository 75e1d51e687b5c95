"""Patterns of connections: what makes one sound, both its views, and who is connected to whom."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..ops import library as _ops

__all__ = ["Pattern", "require_tensors"]


def require_tensors(**values: object) -> None:
    """What is given by name must be tensors: TypeError."""
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


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
        require_tensors(ccol_indices=ccol_indices, row_indices=row_indices)
        return cls(*_ops.both_views(ccol_indices, row_indices, cols, rows, "ccol_indices", "row_indices"))

    @classmethod
    def from_csr(cls, crow_indices: torch.Tensor, col_indices: torch.Tensor, shape: tuple[int, int]) -> Pattern:
        """From the row view of a matrix of ``shape`` (M, N), int32 or int64; raises like ``from_csc``."""
        rows, cols = shape
        require_tensors(crow_indices=crow_indices, col_indices=col_indices)
        _, _, ccol, row, _ = _ops.both_views(crow_indices, col_indices, rows, cols, "crow_indices", "col_indices")
        return cls._of(ccol, row, rows)

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
        ccol, row = _ops.pattern_of_keys(keys, rows, cols)
        return cls._of(ccol, row, rows)

    @classmethod
    def _of(cls, ccol_indices: torch.Tensor, row_indices: torch.Tensor, rows: int) -> Pattern:
        """From a sound column view."""
        return cls(ccol_indices, row_indices, *_ops.transposed(ccol_indices, row_indices, rows))

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
