"""A sparse layer that only computes: effective weights in row order, and nothing that training needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .._arguments import connections, features, value_dtype
from ..ops import library as _ops
from .linear import SparseLinear
from .norms import keeps_values
from .plain import column_numbers

__all__ = ["FrozenLinear"]

_NARROW = 2**16  # inputs that 16 bits tell apart


class FrozenLinear(nn.Module):
    """What a ``SparseLinear`` computes, for inference: ``input @ W.T + bias`` with the effective weights.

    No norm, no column view and no derivatives: 6 bytes for each connection (8 where there are more than 65,536 inputs)
    in place of 16, and less to do in a call. That is on the CPU; on a GPU each call makes the dense weight and
    multiplies by it. ``dendnorm.freeze`` puts it in a model; this constructor makes an empty one, for a state_dict of
    another.

    Args:
        in_features, out_features: N and M.
        nnz: the number of connections.
        bias: whether there is one.
        device, dtype: of the values, float32 or float64.

    Attributes:
        weight: (nnz,), the effective weights in row order, a buffer as all of these are.
        bias: (M,) or None.
        crow_indices: (M + 1,), int32, where the connections of each output neuron begin.
        col_indices: (nnz,), the input neuron of each: int16 with the bits of unsigned numbers (uint16 tensors cannot be
            pickled) or, with more than 65,536 inputs, int32.

    Shape: input ``(*, N)`` of weight's dtype or, where that is float32, of bfloat16 or float16; output ``(*, M)`` of
    input's.

    Raises:
        RuntimeError: called in training mode (``train()``).
        NotImplementedError: called with what requires a gradient.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    crow_indices: torch.Tensor
    col_indices: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        nnz: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = features("in_features", in_features)
        self.out_features = features("out_features", out_features)
        nnz, dtype = connections(None, nnz, in_features * out_features), value_dtype(dtype)
        index = torch.int16 if in_features <= _NARROW else torch.int32
        self.register_buffer("weight", torch.zeros(nnz, device=device, dtype=dtype))
        self.register_buffer("bias", torch.zeros(out_features, device=device, dtype=dtype) if bias else None)
        crow = torch.full((out_features + 1,), nnz, device=device, dtype=torch.int32)
        crow[0] = 0
        self.register_buffer("crow_indices", crow)
        self.register_buffer("col_indices", torch.zeros(nnz, device=device, dtype=index))
        self.eval()

    @classmethod
    @torch.no_grad()
    def from_sparse(cls, layer: SparseLinear) -> FrozenLinear:
        """What `layer` computes now, with memory of its own.

        Raises:
            TypeError: not a ``SparseLinear``.
        """
        if not isinstance(layer, SparseLinear):
            raise TypeError(f"layer must be a SparseLinear, got {type(layer).__name__}")
        weight, bias = layer.effective_weight(), layer.bias
        frozen = cls(
            layer.in_features, layer.out_features, layer.nnz, bias is not None, device=weight.device, dtype=weight.dtype
        )
        if not weight.is_meta:
            pattern = layer.pattern
            frozen.weight.copy_(weight[pattern.perm.long()])
            frozen.crow_indices.copy_(pattern.crow_indices)
            frozen.col_indices.copy_(pattern.col_indices)
            if bias is not None and frozen.bias is not None:
                frozen.bias.copy_(bias)
        return frozen

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError(
                f"{self}: a frozen layer cannot train; call eval() on the model, or train the SparseLinear that it was"
                " made of"
            )
        buffers: Any = self._buffers
        return _ops.frozen_linear(
            input,
            buffers["weight"],
            buffers["bias"],
            buffers["crow_indices"],
            buffers["col_indices"],
            self.in_features,
        )

    @property
    def nnz(self) -> int:
        """The number of connections."""
        return self.weight.shape[0]

    @property
    def density(self) -> float:
        """The share of positions that are connected."""
        return self.nnz / (self.in_features * self.out_features)

    def to_sparse_csr(self) -> torch.Tensor:
        """The weights as a torch CSR tensor (M, N) with int32 indices and memory of its own."""
        return torch.sparse_csr_tensor(
            self.crow_indices.clone(),
            column_numbers(self.col_indices).clone(),
            self.weight.clone(),
            (self.out_features, self.in_features),
            check_invariants=False,  # the pattern was checked when it came
        )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool,
                              missing_keys: list, unexpected_keys: list, error_msgs: list) -> None:  # fmt: skip
        """Take nothing where the indices are no pattern: the kernels trust them."""
        names = ("crow_indices", "col_indices")
        crow, col = (state_dict.get(prefix + name, self._buffers[name]) for name in names)
        if (
            isinstance(crow, torch.Tensor)
            and isinstance(col, torch.Tensor)
            and not (crow.is_meta or col.is_meta)
            and (crow.shape, col.shape) == (self.crow_indices.shape, self.col_indices.shape)
        ):
            crow, col = crow.int(), column_numbers(col)
            try:
                _ops.check_view(crow, col, self.out_features, self.in_features, *names)
            except ValueError as error:
                error_msgs.append(f"{prefix or 'FrozenLinear'}: {str(error).partition(chr(10))[0]}")
                return
            checked = zip(names, (crow, col.to(self.col_indices.dtype)), strict=True)
            state_dict = state_dict | {prefix + name: each for name, each in checked if prefix + name in state_dict}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _apply(self, fn: Callable, recurse: bool = True) -> FrozenLinear:
        return super()._apply(keeps_values(fn), recurse)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None},"
            f" nnz={self.nnz}, density={self.density:.3g}"
        )
