"""The layer: ``torch.nn.Linear`` with few connections and a dendritic normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from .._arguments import connections, features, seed_of, value_dtype
from ..ops import library as _ops
from .layer import SparseLayer, parameter_of
from .norms import Norm, resolve
from .pattern import Pattern, require_tensors

__all__ = ["SparseLinear"]


def _of_pattern(pattern: object, in_features: int | None, out_features: int | None, density: object, nnz: object
                ) -> tuple[int, int, None, int]:  # fmt: skip
    """The sizes that a pattern gives, which may be given too."""
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a dendnorm.Pattern, got {type(pattern).__name__}")
    if density is not None or nnz is not None:
        raise ValueError("density and nnz must be left out where a pattern is given, which has a number of connections")
    for name, given, own in (("in_features", in_features, pattern.in_features),
                             ("out_features", out_features, pattern.out_features)):  # fmt: skip
        if given is not None and given != own:
            raise ValueError(f"{name} must be the pattern's, {own}, or left out, got {given}")
    _ops.check_view(
        *pattern[:2], pattern.in_features, pattern.out_features, "pattern.ccol_indices", "pattern.row_indices"
    )
    return pattern.in_features, pattern.out_features, None, pattern.nnz


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
        ccol_indices, row_indices: the pattern, int32, in the state_dict; ``pattern`` has both views of it.

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
            in_features, out_features, density, nnz = _of_pattern(pattern, in_features, out_features, density, nnz)
        inputs, outputs = features("in_features", in_features), features("out_features", out_features)
        count = connections(density, nnz, inputs * outputs)
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be a bool, got {bias!r}")
        norm, dtype = resolve(norm), value_dtype(dtype)
        if device is None and pattern is not None:
            device = pattern.perm.device
        device = torch.get_default_device() if device is None else torch.device(device)
        seed = seed_of(seed) if seed is not None or device.type != "meta" else 0
        self._allocate(inputs, outputs, count, bias, device, dtype)
        norm.initialise(outputs, count, dtype, device)
        self.norm = norm
        if device.type != "meta":
            self._draw(seed, pattern)

    @classmethod
    def _of(
        cls, pattern: Pattern, effective: torch.Tensor, bias: torch.Tensor | None, norm: Norm | str | None
    ) -> SparseLinear:
        """A layer with these effective weights, in column order. Touches `norm` only when nothing can go wrong."""
        norm, dtype = resolve(norm), torch.float64 if effective.dtype == torch.float64 else torch.float32
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._allocate(
            pattern.in_features, pattern.out_features, pattern.nnz, bias is not None, effective.device, dtype
        )
        norm.check(pattern.out_features, dtype, effective.device)
        values, excitability = norm.raw_values(effective.detach(), pattern.row_indices, pattern.out_features)
        taken = norm.excitability is not None
        norm.initialise(pattern.out_features, pattern.nnz, dtype, effective.device)
        layer.norm = norm
        with torch.no_grad():
            layer.weight.copy_(values)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
            if excitability is not None and norm.excitability is not None and not taken:
                norm.excitability.copy_(excitability)
            layer._write(pattern)
        return layer

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
        dense = linear.weight.detach()
        rows, cols = dense.shape
        features("linear.in_features", cols), features("linear.out_features", rows)
        count = None if density is None else connections(density, None, rows * cols)
        if dense.device.type == "meta":
            if count is None:
                raise ValueError("density must be given for a linear on the meta device, which has no values, got None")
            layer = cls(cols, rows, nnz=count, norm=norm, bias=linear.bias is not None, device="meta")
        else:
            ccol, row, effective = _ops.largest_connections(dense, count, "linear.weight")
            layer = cls._of(Pattern._of(ccol, row, rows), effective, linear.bias, norm)
        for mine, theirs in ((layer.weight, linear.weight), (layer.bias, linear.bias)):
            if mine is not None:
                mine.requires_grad_(theirs.requires_grad)
        return layer.train(linear.training)

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
        return cls._of(Pattern._of(ccol, row, rows), effective, bias, norm)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if is_compiling():
            return self._product(input)
        try:
            return self._product(input)
        except ValueError as error:
            if "views of different patterns" not in str(error) or not self._was_overwritten():
                raise
        return self._product(input)

    def _product(self, input: torch.Tensor) -> torch.Tensor:
        # Module attributes are slow to look up, and a small layer's call is mostly that.
        norm: Any = self._modules["norm"]
        buffers = self._buffers
        return _ops.sparse_linear(
            input,
            parameter_of(self, "weight"),
            parameter_of(self, "bias"),
            self._excitability(),
            buffers["ccol_indices"],
            buffers["row_indices"],
            *self._row_view(),
            norm.a,
            norm.b,
            norm.p,
        )

    @torch.no_grad()
    def to_dense(self) -> nn.Linear:
        """An ``nn.Linear`` with the effective weights and a copy of the bias, of the same dtype, device and mode."""
        linear = nn.utils.skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        if not self.weight.is_meta:
            linear.weight.zero_()[self.edges()] = self.effective_weight()
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    @torch.no_grad()
    def to_sparse_csr(self) -> torch.Tensor:
        """The effective weights as a torch CSR tensor (M, N) with int32 indices, detached and with its own memory."""
        return torch.sparse_csr_tensor(
            self.crow_indices.clone(),
            self.col_indices.clone(),
            self.effective_weight()[self.perm.long()],
            (self.out_features, self.in_features),
            check_invariants=False,  # a layer's pattern was checked when it came
        )

    @torch.no_grad()
    def reset_parameters(self, seed: int | None = None) -> None:
        """Draw edges and values anew, in place, as a fresh layer of this size and seed has them; bias and e are reset.

        An excitability that other layers share is reset for them too.

        Raises:
            TypeError, ValueError: a seed that is not an int in [0, 2^63).
        """
        seed = seed_of(seed)
        self.norm.reset_parameters()
        if not self.weight.is_meta:
            self._draw(seed)

    @torch.no_grad()
    def _draw(self, seed: int, pattern: Pattern | None = None) -> None:
        # On the CPU: the bits are the same everywhere, and it is done once.
        if pattern is None:
            none = torch.zeros(self.in_features + 1, dtype=torch.int32, device="cpu")
            keys = _ops.empty_positions(none, none[:0], self.out_features, self.nnz, seed, 0, 0)
            pattern = Pattern._from_keys(keys, self.out_features, self.in_features)
        self._write(pattern)
        values = _ops.counter_normal(self.nnz, seed, 0, 0, dtype=self.weight.dtype, device=torch.device("cpu"))
        self.weight.copy_(values.mul_(self.norm.deviation(self.nnz / self.out_features)))
        if self.bias is not None:
            self.bias.zero_()

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None},"
            f" nnz={self.nnz}, density={self.density:.3g}, norm={self.norm.name}"
        )

    def __repr__(self) -> str:
        # In one line, as nn.Linear: the norm is part of it and not a child to be listed.
        return f"{self._get_name()}({self.extra_repr()})"
