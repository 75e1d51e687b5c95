"""The layer: ``torch.nn.Linear`` with few connections and a dendritic normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._arguments import connections, features
from ..ops import library as _ops
from .layer import SparseLayer
from .making import bare, check_sizes, densified, fill, fill_from_dense, start
from .norms import Norm
from .pattern import Pattern, require_tensors
from .row_view import Tables

__all__ = ["SparseLinear"]


class SparseLinear(SparseLayer):
    """``y = x W.T + bias`` with exactly nnz connections, where row i of W is w_i = (e_i / (n_i^a ||v_i||_p^b)) v_i.

    Used like ``nn.Linear``: input ``(*, in_features)``, output ``(*, out_features)`` of the input's dtype. A fresh
    layer draws its connections uniformly without replacement and its values v from N(0, 1 / n), n the mean number of
    afferents of a neuron (``norms.l0(s=25.0)``, the paper's start: from N(0, 1)); its bias is 0. Edges and values are a
    function of the seed alone, on every device. The number of connections and every tensor's shape, storage and
    identity stay the same for the life of the layer, through rewiring and through ``load_state_dict`` too; only
    ``dendnorm.resize`` changes them.

    Formula: Bird and Cuntz, "Dendritic normalisation improves learning in sparsely connected artificial neural
    networks", Eq 1 to 6; the norms are listed in ``dendnorm.norms``.

    Args:
        in_features, out_features: N and M, at least 1.
        density: share of the N M positions that are connected, in (0, 1]: ``round(density * N * M)`` of them.
        nnz: their number, instead of ``density``.
        pattern: which connections there are, instead of sizes and ``density``: see ``dendnorm.patterns``. Copied.
        norm: a ``dendnorm.norms.Norm``, its string form, or None. Layers given the same object share its excitability.
        bias: whether there is one.
        seed: of edges and values, in [0, 2^63); None draws one from torch's default generator.
        device: ``"meta"`` allocates nothing; then ``to_empty`` and ``reset_parameters``, or ``load_state_dict``.
        dtype: float32 or float64. ``half()`` and ``bfloat16()`` leave the values in float32, and the layer takes and
            gives 16-bit activations.

    Attributes:
        weight: Parameter (nnz,), v in the layer's own order: ``edges()`` tells it.
        bias: Parameter (M,) or None.
        norm: the ``Norm`` that holds the excitability.
        ccol_indices: with ``row_indices`` the pattern, int32, in the state_dict; ``pattern`` has both views of it.
        row_indices: the output neuron of each connection.

    Raises:
        TypeError, ValueError: an argument that is not as above; names it, what was expected and what came.
        RuntimeError: when called, an input whose shape, dtype or device does not fit.
    """

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        density: float | None = None,
        *,
        nnz: int | None = None,
        pattern: Pattern | None = None,
        norm: Norm | str | None = "l0",
        bias: bool = True,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if pattern is not None:
            pattern = check_sizes(pattern, density, nnz)
            for name, given, own in (("in_features", in_features, pattern.in_features),
                                     ("out_features", out_features, pattern.out_features)):  # fmt: skip
                if given is not None and given != own:
                    raise ValueError(f"{name} must be the pattern's, {own}, or left out, got {given}")
            in_features, out_features, nnz = pattern.in_features, pattern.out_features, pattern.nnz
        inputs, outputs = features("in_features", in_features), features("out_features", out_features)
        count = connections(density, nnz, inputs * outputs)
        start(self, inputs, outputs, count, pattern, norm, bias, seed, device, dtype)

    @classmethod
    def from_dense(
        cls, linear: nn.Linear, density: float | None = None, *, norm: Norm | str | None = "l0"
    ) -> SparseLinear:
        """A layer that computes what `linear` does with its largest weights alone.

        v is chosen so that the effective weights equal the kept ones. Bias, device and training mode are linear's; so
        is dtype, but for 16-bit weights, which become float32.

        Args:
            linear: left as it is.
            density: keeps the ``round(density * N * M)`` largest by magnitude, of equals the later in column order.
                None keeps exactly those that are not 0.
            norm: as for the constructor.

        Raises:
            TypeError: not an ``nn.Linear``.
            ValueError: density out of (0, 1], weights that are not finite, or a norm that cannot represent them (b = 1
                with one excitability for all neurons, unless their rows agree in n_i^a ||w_i||_p).
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        layer = bare(cls)
        fill_from_dense(layer, "linear", linear, density, norm)
        return layer

    @classmethod
    def from_csr(
        cls,
        crow_indices: torch.Tensor,
        col_indices: torch.Tensor,
        values: torch.Tensor,
        *,
        shape: tuple[int, int],
        bias: torch.Tensor | None = None,
        norm: Norm | str | None = "l0",
    ) -> SparseLinear:
        """A layer whose effective weights are those of a CSR matrix; a stored 0 is a connection like any other.

        Args:
            crow_indices: (M + 1,), int32 or int64.
            col_indices: (nnz,), ascending within each row.
            values: (nnz,), the effective weights in row order, float32 or float64.
            shape: (M, N).
            bias: (M,) or None.
            norm: as for the constructor.

        Raises:
            TypeError, ValueError: indices that are no CSR matrix, values or bias of another shape, dtype or device, or
                not finite, or a norm that cannot represent them, as in ``from_dense``.
        """
        if not isinstance(shape, (tuple, list, torch.Size)) or len(shape) != 2:
            raise TypeError(f"shape must be a pair (out_features, in_features), got {shape!r}")
        rows, cols = features("shape[0]", shape[0]), features("shape[1]", shape[1])
        require_tensors(crow_indices=crow_indices, col_indices=col_indices, values=values)
        if bias is not None:
            require_tensors(bias=bias)
        with torch.no_grad():
            ccol, row, effective = _ops.connections_of_csr(crow_indices, col_indices, values, bias, rows, cols)
        layer = bare(cls)
        fill(layer, Pattern._of(ccol, row, rows), effective, bias, norm)
        return layer

    def _product(self, input: torch.Tensor, view: Tables) -> torch.Tensor:
        # Module attributes are slow to look up, and a small layer's call is mostly that.
        norm: Any = self._modules["norm"]
        buffers = self._buffers
        return _ops.sparse_linear(
            input,
            *self._values(),
            buffers["ccol_indices"],
            buffers["row_indices"],
            *view,
            norm.a,
            norm.b,
            norm.p,
        )

    def to_dense(self) -> nn.Linear:
        """An ``nn.Linear`` with the effective weights and a copy of the bias, of the same dtype, device and mode."""
        return densified(self, nn.Linear, self.in_features, self.out_features)

    def _seen(self, input: torch.Tensor) -> torch.Tensor:
        return input.detach().reshape(-1, self.in_features).clone()

    def _seen_output(self, output: torch.Tensor) -> torch.Tensor:
        return output.detach().reshape(-1, self.out_features).clone()

    def _products(self, x: torch.Tensor, y: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        return x[:, start:stop].T @ y

    def _sampled(self, x: torch.Tensor, y: torch.Tensor, pattern: Pattern) -> torch.Tensor:
        return _ops.sampled_product(y, x, *pattern)

    def _energies(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().sum(0).unsqueeze(1)

    def extra_repr(self) -> str:
        norm = repr(self.norm) if self.norm.name.startswith("Norm(") else self.norm.extra_repr()
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None},"
            f" nnz={self.nnz}, density={self.density:.3g}, norm={norm}"
        )
