"""The layers that ``dendnorm bench`` times: ours and its dense and sparse peers, with the same edges and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ...nn.linear import SparseLinear

__all__ = ["CONTENDERS", "NO_SPARSEPROP", "OURS", "Unavailable", "tolerance"]

NO_SPARSEPROP = "not installed (pip install scipy; pip install --no-build-isolation --no-deps sparseprop)"
DENSE_LIMIT = 2**28  # entries of a weight matrix above which the dense contenders are left out


class Unavailable(Exception):
    """Why a contender does not run this shape."""


class AutocastLinear(nn.Module):
    """A dense layer whose product is one of bfloat16, as under ``torch.autocast``; input and output are float32."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.linear = dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.linear(x).float()


class MaskedLinear(nn.Module):
    """What sparsity is simulated with elsewhere: the weight times a mask of zeros and ones, then a dense product."""

    def __init__(self, dense: nn.Linear, mask: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = dense.weight, dense.bias
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class _CsrProduct(torch.autograd.Function):
    """x W^T with torch's own sparse products; the gradient of the values is sampled where the connections are."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, values: torch.Tensor, layer: CsrLinear) -> torch.Tensor:
        ctx.save_for_backward(x, values)
        ctx.layer = layer
        return (layer.matrix(values) @ x.t()).t()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, values = ctx.saved_tensors
        layer = ctx.layer
        dx = (layer.transposed(values) @ dy.t()).t()
        sampled = torch.sparse.sampled_addmm(layer.matrix(values), dy.t(), x, beta=0.0)
        return dx, sampled.values(), None


class CsrLinear(nn.Module):
    """A layer on torch.sparse's CSR tensors: addmm forward and for dX, sampled_addmm for the values."""

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        weight = layer.to_sparse_csr()
        self.shape = tuple(weight.shape)
        self.values = nn.Parameter(weight.values().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        # On a GPU as narrow as ours; on a CPU sampled_addmm takes int64 alone.
        index = torch.int64 if layer.weight.device.type == "cpu" else torch.int32
        self.register_buffer("crow", weight.crow_indices().to(index))
        self.register_buffer("col", weight.col_indices().to(index))
        self.register_buffer("ccol", layer.ccol_indices.to(index))
        self.register_buffer("row", layer.row_indices.to(index))
        self.register_buffer("order", torch.argsort(layer.perm.long()))  # column order from row order

    def matrix(self, values: torch.Tensor) -> torch.Tensor:
        return torch.sparse_csr_tensor(self.crow, self.col, values.detach(), self.shape, check_invariants=False)

    def transposed(self, values: torch.Tensor) -> torch.Tensor:
        ordered = values.detach()[self.order]
        return torch.sparse_csr_tensor(self.ccol, self.row, ordered, self.shape[::-1], check_invariants=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _CsrProduct.apply(x, self.values, self) + self.bias


def _check_dense(layer: SparseLinear) -> None:
    entries = layer.in_features * layer.out_features
    if entries > DENSE_LIMIT:
        raise Unavailable(f"needs {entries * layer.weight.element_size() / 2**30:.1f} GiB for the weight alone")


def _dense(layer: SparseLinear) -> nn.Module:
    _check_dense(layer)
    return layer.to_dense()


def _dense_bfloat16(layer: SparseLinear) -> nn.Module:
    if layer.weight.dtype != torch.float32:
        raise Unavailable("float32 only")
    _check_dense(layer)
    return AutocastLinear(layer.to_dense())


def _masked(layer: SparseLinear) -> nn.Module:
    _check_dense(layer)
    row, col = layer.edges()
    mask = layer.weight.new_zeros(layer.out_features, layer.in_features).detach()
    mask[row.long(), col.long()] = 1
    return MaskedLinear(layer.to_dense(), mask)


def _sparseprop(layer: SparseLinear) -> nn.Module:
    if layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
        raise Unavailable("float32 on the CPU only")
    try:
        from sparseprop.modules import SparseLinear as SparseProp
    except ImportError:
        raise Unavailable(NO_SPARSEPROP) from None
    weight = layer.to_sparse_csr()
    # From a dense stand-in of one entry: its own constructor would need the whole dense matrix.
    module = SparseProp(torch.ones(1, 1), nn.Parameter(layer.bias.detach().clone()))
    module.N, module.M = layer.out_features, layer.in_features
    module.W_val = nn.Parameter(weight.values().clone())
    module.W_idx = tuple(
        indices.to(old.dtype)
        for indices, old in zip((weight.crow_indices(), weight.col_indices()), module.W_idx, strict=True)
    )
    return module


def _sparselab(layer: SparseLinear) -> nn.Module:
    if layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
        raise Unavailable("float32 on the CPU only")
    try:
        from sparselab import PaddedCSR
        from sparselab import SparseLinear as SparseLab
    except ImportError:
        raise Unavailable("not installed (pip install --no-deps sparselab)") from None
    # From a stand-in of one entry: its own constructor would need the whole dense matrix.
    module = SparseLab(1, 1, sparsity=0.0)
    module.in_features, module.out_features = layer.in_features, layer.out_features
    module._csr = PaddedCSR.from_torch_sparse_csr(layer.to_sparse_csr())
    module._values = nn.Parameter(torch.from_numpy(np.asarray(module._csr.values)))
    module.bias = nn.Parameter(layer.bias.detach().clone())
    return module


def _ours(layer: SparseLinear) -> nn.Module:
    return layer


def _with_norm(norm: str) -> Callable[[SparseLinear], nn.Module]:
    def make(layer: SparseLinear) -> nn.Module:
        values = layer.effective_weight().detach()[layer.perm.long()]
        shape = layer.out_features, layer.in_features
        return SparseLinear.from_csr(
            layer.crow_indices, layer.col_indices, values, shape=shape, bias=layer.bias, norm=norm
        )

    return make


# Each makes a module with the edges and values of a layer.
CONTENDERS: dict[str, Callable[[SparseLinear], nn.Module]] = {
    "dense": _dense,
    "dense, bfloat16": _dense_bfloat16,
    "masked": _masked,
    "torch.sparse": CsrLinear,
    "SparseProp": _sparseprop,
    "SparseLab": _sparselab,
    "dendnorm": _ours,
    "dendnorm, l0": _with_norm("l0"),
    "dendnorm, weight_norm": _with_norm("weight_norm"),
}
OURS = "dendnorm"


def tolerance(name: str) -> float:
    """How far a contender's outputs may be from ours, of the largest: more where it rounds to bfloat16."""
    return 3e-2 if "bfloat16" in name else 1e-3
