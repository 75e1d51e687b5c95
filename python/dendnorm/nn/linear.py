"""The layer: ``torch.nn.Linear`` with few connections and a dendritic normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .._arguments import connections, features, seed_of, value_dtype
from ..ops import library as _ops
from .computed import computed
from .norms import Norm, keeps_values, resolve
from .pattern import Pattern, check_view, transposed

__all__ = ["SparseLinear"]

_PATTERN = ("ccol_indices", "row_indices", "crow_indices", "col_indices", "perm")


def _parameter(module: nn.Module, name: str) -> Any:
    """A parameter, from where it lies unless a parametrization or a hook has moved it: several times faster."""
    parameters = module._parameters
    return parameters[name] if name in parameters else computed(module, name)


class SparseLinear(nn.Module):
    """``y = x W.T + bias`` with exactly nnz connections, where row i of W is w_i = (e_i / (n_i^a ||v_i||_p^b)) v_i.

    Used like ``nn.Linear``: input ``(*, in_features)``, output ``(*, out_features)`` of the input's dtype. A fresh
    layer draws its connections uniformly without replacement and its values v from N(0, 1); its bias is 0. Edges and
    values are a function of the seed alone, on every device. The number of connections and every tensor's shape,
    storage and identity stay the same for the life of the layer, through rewiring and through ``load_state_dict`` too;
    only ``dendnorm.resize`` changes them.

    Formula: Bird and Cuntz, "Dendritic normalisation improves learning in sparsely connected artificial neural
    networks", Eq 1 to 6; the norms are listed in ``dendnorm.norms``.

    Args:
        in_features, out_features: N and M, at least 1.
        density: share of the N M positions that are connected, in (0, 1]: ``round(density * N * M)`` of them.
        nnz: their number, instead of ``density``.
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

    weight: nn.Parameter
    bias: nn.Parameter | None
    norm: Norm
    ccol_indices: torch.Tensor
    row_indices: torch.Tensor
    crow_indices: torch.Tensor
    col_indices: torch.Tensor
    perm: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        density: float | None = None,
        *,
        nnz: int | None = None,
        norm: Norm | str | None = "l0",
        bias: bool = True,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positions = features("in_features", in_features) * features("out_features", out_features)
        count = connections(density, nnz, positions)
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be a bool, got {bias!r}")
        norm, dtype = resolve(norm), value_dtype(dtype)
        device = torch.get_default_device() if device is None else torch.device(device)
        seed = seed_of(seed) if seed is not None or device.type != "meta" else 0
        self._allocate(in_features, out_features, count, bias, device, dtype)
        norm.initialise(out_features, count, dtype, device)
        self.norm = norm
        if device.type != "meta":
            self._draw(seed)

    def _allocate(
        self, in_features: int, out_features: int, nnz: int, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(nnz, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        )
        # The row view follows from the column view, so only the latter is saved.
        for name, size in zip(_PATTERN, (in_features + 1, nnz, out_features + 1, nnz, nnz), strict=True):
            empty = torch.zeros(size, device=device, dtype=torch.int32)
            self.register_buffer(name, empty, persistent=name in _PATTERN[:2])

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
        values, excitability = norm.raw_values(effective.detach(), pattern.edges()[0], pattern.crow_indices.diff())
        taken = norm.excitability is not None
        norm.initialise(pattern.out_features, pattern.nnz, dtype, effective.device)
        layer.norm = norm
        with torch.no_grad():
            layer.weight.copy_(values)
            if bias is not None:
                layer.bias.copy_(bias)
            if excitability is not None and not taken:
                norm.excitability.copy_(excitability)
            for buffer, tensor in zip(layer.pattern, pattern, strict=True):
                buffer.copy_(tensor)
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
            if not torch.isfinite(dense).all():
                raise ValueError("linear.weight must be finite, got nan or infinite values")
            by_column = dense.T.reshape(-1)
            if count is None:
                kept = by_column != 0
            else:
                magnitude = by_column.abs()
                magnitude = magnitude if magnitude.dtype == torch.float64 else magnitude.float()
                if not _ops.has_kernel("weakest", magnitude.device):
                    magnitude = magnitude.cpu()
                kept = ~_ops.weakest(magnitude, rows * cols - count).to(dense.device)
            keys = kept.nonzero().flatten()
            layer = cls._of(Pattern._from_keys(keys, rows, cols), by_column[keys], linear.bias, norm)
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
        pattern = Pattern.from_csr(crow_indices, col_indices, (rows, cols))
        for name, tensor, size in (("values", values, pattern.nnz), ("bias", bias, rows)):
            if tensor is None and name == "bias":
                continue
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
            if tensor.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"{name} must be of dtype float32 or float64, got {tensor.dtype}")
            if tuple(tensor.shape) != (size,):
                raise ValueError(f"{name} must have shape ({size},), got {tuple(tensor.shape)}")
            if tensor.device != pattern.perm.device:
                raise ValueError(f"{name} must be on {pattern.perm.device} like the indices, got {tensor.device}")
            if tensor.device.type != "meta" and not torch.isfinite(tensor).all():
                raise ValueError(f"{name} must be finite, got nan or infinite values")
        if bias is not None and bias.dtype != values.dtype:
            raise TypeError(f"bias must be of values' dtype {values.dtype}, got {bias.dtype}")
        effective = torch.empty_like(values.detach())
        effective[pattern.perm.long()] = values.detach()
        return cls._of(pattern, effective, bias, norm)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # Module attributes are slow to look up, and a small layer's call is mostly that.
        norm, buffers = self._modules["norm"], self._buffers
        return _ops.sparse_linear(
            input,
            _parameter(self, "weight"),
            _parameter(self, "bias"),
            _parameter(norm, "excitability"),
            buffers["ccol_indices"],
            buffers["row_indices"],
            buffers["crow_indices"],
            buffers["col_indices"],
            buffers["perm"],
            norm.a,
            norm.b,
            norm.p,
        )

    def effective_weight(self) -> torch.Tensor:
        """w: (nnz,), in the order of ``weight``; differentiable in the values and the excitability."""
        weight, norm = _parameter(self, "weight"), self.norm
        return _ops.effective_weight(weight, norm.excitability, *self.pattern, norm.a, norm.b, norm.p)

    @property
    def nnz(self) -> int:
        """The number of connections."""
        return self.row_indices.shape[0]

    @property
    def density(self) -> float:
        """The share of positions that are connected."""
        return self.nnz / (self.in_features * self.out_features)

    @property
    def pattern(self) -> Pattern:
        """The layer's own index tensors, not copies: rewiring writes into them."""
        return Pattern(self.ccol_indices, self.row_indices, self.crow_indices, self.col_indices, self.perm)

    def edges(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The output and the input neuron of each entry of ``weight``: two int64 tensors (nnz,)."""
        return self.pattern.edges()

    def in_degrees(self) -> torch.Tensor:
        """n_i, the number of afferents of each output neuron: (M,), int64."""
        return self.crow_indices.diff().long()

    def out_degrees(self) -> torch.Tensor:
        """The number of efferents of each input neuron: (N,), int64."""
        return self.ccol_indices.diff().long()

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
        """Draw edges and values anew, in place, as a fresh layer with this seed has them; bias 0, excitability reset.

        An excitability that other layers share is reset for them too.

        Raises:
            TypeError, ValueError: a seed that is not an int in [0, 2^63).
        """
        seed = seed_of(seed)
        self.norm.reset_parameters()
        if not self.weight.is_meta:
            self._draw(seed)

    @torch.no_grad()
    def _draw(self, seed: int) -> None:
        # On the CPU: the bits are the same everywhere, and it is done once.
        none = torch.zeros(self.in_features + 1, dtype=torch.int32, device="cpu")
        keys = _ops.empty_positions(none, none[:0], self.out_features, self.nnz, seed, 0, 0)
        self._write(Pattern._from_keys(keys, self.out_features, self.in_features))
        values = _ops.counter_normal(self.nnz, seed, 0, 0, dtype=self.weight.dtype, device=torch.device("cpu"))
        self.weight.copy_(values)
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def _write_pattern(self, ccol_indices: torch.Tensor, row_indices: torch.Tensor) -> None:
        """Take another pattern of as many connections, in place; the caller moves the values.

        Raises:
            ValueError: not a pattern of this layer's shape and nnz; the layer is then as it was.
        """
        self._check_pattern(ccol_indices, row_indices)
        self._write(Pattern(ccol_indices, row_indices, *transposed(ccol_indices, row_indices, self.out_features)))

    def _write(self, pattern: Pattern) -> None:
        for buffer, tensor in zip(self.pattern, pattern, strict=True):
            buffer.copy_(tensor)

    def _check_pattern(self, ccol_indices: torch.Tensor, row_indices: torch.Tensor) -> None:
        for name, tensor in (("ccol_indices", ccol_indices), ("row_indices", row_indices)):
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.int32 or tensor.dim() != 1:
                kind = (
                    (tensor.dtype, tuple(tensor.shape)) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                )
                raise ValueError(f"{name} must be an int32 tensor of one dimension, got {kind}")
        if len(row_indices) != self.nnz:
            raise ValueError(
                f"row_indices must have {self.nnz} entries, as many as the layer has connections, got"
                f" {len(row_indices)}; build the layer with nnz={len(row_indices)}"
            )
        check_view(ccol_indices, row_indices, self.in_features, self.out_features, ("ccol_indices", "row_indices"))

    def _apply(self, fn: Callable, recurse: bool = True) -> SparseLinear:
        was_meta = self.row_indices.is_meta
        super()._apply(keeps_values(fn), recurse)
        if was_meta and not self.row_indices.is_meta:
            # Memory of unknown content must not be taken for indices: the first positions, until others are written.
            keys = torch.arange(self.nnz, device="cpu")
            self._write(Pattern._from_keys(keys, self.out_features, self.in_features))
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        assign = local_metadata.get("assign_to_params_buffers", False)
        problem = self._problem_of(state_dict, prefix, strict, assign)
        if problem is not None:
            error_msgs.append(f"{prefix[:-1] or 'SparseLinear'}: {problem}; the layer was left as it was.")
            own = dict(self.named_parameters()) | dict(self.named_buffers())
            for name in own:  # the norm is loaded after this: let it find what it has
                if name.startswith("norm.") and prefix + name in state_dict:
                    state_dict[prefix + name] = own[name]
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if prefix + "row_indices" in state_dict and not self.row_indices.is_meta:
            derived = transposed(self.ccol_indices, self.row_indices, self.out_features)
            for name, tensor in zip(_PATTERN[2:], derived, strict=True):
                if assign:
                    setattr(self, name, tensor)
                else:
                    getattr(self, name).copy_(tensor)

    def _problem_of(self, state_dict: dict[str, Any], prefix: str, strict: bool, assign: bool) -> str | None:
        """What keeps a state_dict from being loaded, found before anything has changed."""
        own = {name: tensor for name, tensor in self.named_parameters()}
        own |= {name: getattr(self, name) for name in _PATTERN[:2]}
        given = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        missing = [name for name in own if name not in given]
        # Values belong to the pattern that they were saved with.
        patterned = any(name in given for name in _PATTERN[:2])
        if missing and (strict or (patterned and {"weight", *_PATTERN[:2]} & set(missing))):
            return f"the state_dict must hold {', '.join(prefix + name for name in own)}, got none of {missing}"
        for name, tensor in given.items():
            if not isinstance(tensor, torch.Tensor):
                return f"{name} must be a tensor, got {type(tensor).__name__}"
            if tensor.shape != own[name].shape:
                hint = f"; build the layer with nnz={tensor.numel()}" if name in ("weight", "row_indices") else ""
                return f"{name} must have shape {tuple(own[name].shape)}, got {tuple(tensor.shape)}{hint}"
            if (
                name not in _PATTERN
                and tensor.dtype not in (torch.float32, torch.float64)
                and (assign or not tensor.is_floating_point())
            ):
                return f"{name} must be of dtype float32 or float64, got {tensor.dtype}"
        if patterned:
            try:
                self._check_pattern(given["ccol_indices"], given["row_indices"])
            except (ValueError, TypeError) as error:
                return str(error)
        return None

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None},"
            f" nnz={self.nnz}, density={self.density:.3g}, norm={self.norm.name}"
        )

    def __repr__(self) -> str:
        # In one line, as nn.Linear: the norm is part of it and not a child to be listed.
        return f"{self._get_name()}({self.extra_repr()})"
