"""What every sparse layer holds: values, bias, norm and a pattern; how it is written, moved, copied and loaded.

The pattern is that of a matrix: a row is an output neuron, or a filter of a convolution, and a column what it may be
connected to, an input neuron or a tap of its window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from .._arguments import seed_of
from ..ops import library as _ops
from .computed import computed
from .loading import problem_of_state
from .marks import MARK, SAVED, is_plain
from .norms import Norm, keeps_values
from .pattern import Pattern
from .plain import refuse_trace
from .reading import handed_out, refuse_matrix_function
from .row_view import Patterned, Tables
from .spread import assigned, refuse_spread, widened

__all__ = ["SparseLayer"]

_OF_VERSION_0_1 = ("crow_indices", "col_indices", "perm")  # were buffers, not saved


def parameter_of(module: nn.Module, name: str) -> Any:
    """A parameter, from where it lies unless a parametrization or a hook has moved it: several times faster."""
    parameters = module._parameters
    return parameters[name] if name in parameters else computed(module, name)


class SparseLayer(Patterned):
    """The state of a layer with nnz connections among M x N positions; a subclass computes with it.

    A subclass gives ``_product``, what it computes, its dense form, and what rules of rewiring ask of what passed
    through it: ``_seen`` and ``_seen_output`` (copies to keep), ``_products``, ``_sampled`` and ``_energies`` (sums).

    Attributes:
        in_features, out_features: N and M, the columns and rows of the pattern.
        weight: Parameter (nnz,), v in the layer's own order: ``edges()`` tells it.
        bias: Parameter (M,) or None.
        norm: the ``Norm`` that holds the excitability.
        ccol_indices, row_indices: the pattern's column view, int32, in the state_dict.
        pattern_mark: (8,), float64, whole numbers that tell patterns apart, in the state_dict.
    """

    bias: nn.Parameter | None
    norm: Norm

    def __getattr__(self, name: str) -> Any:
        found = nn.Module.__getattr__(self, name)
        if name == "weight" and not is_compiling():
            refuse_matrix_function(self)
            return handed_out(self, found)
        return found

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of any module; a matrix in the place of ``weight``, as tying to an embedding puts there, is refused."""
        if name == "weight" and isinstance(param, torch.Tensor) and param.dim() != 1:
            raise ValueError(
                f"{type(self).__name__}: weight must be one-dimensional, the values of the connections, got shape"
                f" {tuple(param.shape)}: a sparse layer cannot share a matrix. Name the layer in sparsify's skip"
            )
        super().register_parameter(name, param)

    def _allocate(
        self, in_features: int, out_features: int, nnz: int, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Parameters and buffers of these sizes, none of which is a pattern yet."""
        self.weight = nn.Parameter(torch.empty(nnz, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        )
        self._allocate_pattern(in_features, out_features, nnz, device)

    # The pattern

    @property
    def pattern(self) -> Pattern:
        """The layer's own index tensors, not copies: rewiring writes into them."""
        return Pattern(self.ccol_indices, self.row_indices, *self._row_view())

    @property
    def nnz(self) -> int:
        """The number of connections."""
        return self.row_indices.shape[0]

    @property
    def density(self) -> float:
        """The share of positions that are connected."""
        return self.nnz / (self.in_features * self.out_features)

    def edges(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The output and the input neuron of each entry of ``weight``: two int64 tensors (nnz,)."""
        return self.pattern.edges()

    def in_degrees(self) -> torch.Tensor:
        """n_i, the number of afferents of each output neuron: (M,), int64."""
        return self.crow_indices.diff().long()

    def out_degrees(self) -> torch.Tensor:
        """The number of efferents of each input neuron: (N,), int64."""
        return self.ccol_indices.diff().long()

    def _excitability(self) -> torch.Tensor | None:
        """The norm's e; through its call where something hooks into that, as offloading does to bring tensors in."""
        norm: Any = self._modules["norm"]
        own = norm.__dict__
        if len(own["_forward_pre_hooks"]) > 1 or "forward" in own:  # one is its own
            return norm()
        parameters = own["_parameters"]
        return parameters["excitability"] if "excitability" in parameters else parameter_of(norm, "excitability")

    def _values(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Weight, bias and excitability as the layer's op takes them."""
        own = self._parameters
        weight: Any
        if "weight" in own and "bias" in own:
            weight, bias = own["weight"], own["bias"]
        else:
            weight, bias = parameter_of(self, "weight"), parameter_of(self, "bias")
        values = weight, bias, self._excitability()
        return values if weight.dtype is torch.float32 else widened(*values)

    def effective_weight(self) -> torch.Tensor:
        """w: (nnz,), in the order of ``weight``; differentiable in the values and the excitability."""
        weight, norm = parameter_of(self, "weight"), self.norm
        refuse_trace()
        refuse_spread(f"{self}", weight)
        weight, excitability = widened(weight, self._excitability())
        return _ops.effective_weight(weight, excitability, *self.pattern, norm.a, norm.b, norm.p)

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

    # The call

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if is_compiling():
            return self._product(input, self._traced_view())
        refuse_trace()
        try:
            return self._product(input, self._present_view())
        except (ValueError, RuntimeError) as error:
            refuse_spread(f"{self}", input, self._parameters.get("weight"))
            if "views of different patterns" not in str(error) or not self._was_overwritten():
                raise
        return self._product(input, self._present_view())

    def _product(self, input: torch.Tensor, view: Tables) -> torch.Tensor:
        raise NotImplementedError

    def to_dense(self) -> nn.Module:
        """The dense layer with the effective weights and a copy of the bias."""
        raise NotImplementedError

    # What passed through, for the rules of rewiring

    def _seen(self, input: torch.Tensor) -> torch.Tensor:
        """A copy of an input, without its graph, with the samples in the first dimension."""
        raise NotImplementedError

    def _seen_output(self, output: torch.Tensor) -> torch.Tensor:
        """The same of an output or of the gradient in one: (samples, M, *)."""
        raise NotImplementedError

    def _products(self, x: torch.Tensor, y: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The sums over samples, and positions, of column j's input times row i's output, for columns [start, stop).

        Args:
            x, y: what ``_seen`` and ``_seen_output`` gave.

        Returns:
            (stop - start, M).
        """
        raise NotImplementedError

    def _sampled(self, x: torch.Tensor, y: torch.Tensor, pattern: Pattern) -> torch.Tensor:
        """The same sums for the connections alone, in column order: (nnz,)."""
        raise NotImplementedError

    def _energies(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of each column's squared inputs, for each group of rows that see the same ones: (N, groups)."""
        raise NotImplementedError

    # Writing it

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
        assigned(self.weight, values.mul_(self.norm.deviation(self.nnz / self.out_features)))
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def _write_pattern(self, ccol_indices: torch.Tensor, row_indices: torch.Tensor) -> None:
        """Take another pattern of as many connections, in place; the caller moves the values.

        Raises:
            ValueError: not a pattern of this layer's shape and nnz; the layer is then as it was.
        """
        self._check_pattern(ccol_indices, row_indices)
        self._write(Pattern._of(ccol_indices, row_indices, self.out_features))

    def _write(self, pattern: Pattern, status: torch.Tensor | None = None) -> None:
        """Take a sound pattern, in place; nothing is written where a status, on a GPU, tells of a fault."""
        self._prepared(pattern)(status)

    def _prepared(self, pattern: Pattern) -> Callable[[torch.Tensor | None], None]:
        """What writes a sound pattern; it takes its memory here, and is told a status or None."""
        tables, device = self._tables, self.row_indices.device
        if tables is None or tables[0].device != device:
            with torch.inference_mode(False):
                tables = tuple(torch.empty_like(tensor, device=device) for tensor in pattern[2:])  # type: ignore[assignment]
        own = (self.ccol_indices, self.row_indices, *tables)  # type: ignore[misc]
        found = _ops.pattern_mark(*pattern[:2]).to(self.pattern_mark.device)

        def write(status: torch.Tensor | None) -> None:
            self._leave_copies()
            self._tables, mark = tables, found
            for buffer, tensor in zip(own, pattern, strict=True):
                if status is None:
                    buffer.copy_(tensor)
                else:
                    _ops.assign_(buffer, tensor, status=status)
            if status is not None:
                mark = torch.where(status[0] == _ops.CLEAR, mark, self.pattern_mark)
            self._set_mark(mark)
            self._stamp(mark)

        return write

    def _replace_pattern(self, pattern: Pattern) -> None:
        """Take a sound pattern of any number of connections, with new tensors; the caller has replaced ``weight``."""
        self._forget()
        for name, tensor in zip(SAVED, pattern[:2], strict=True):
            self._buffers[name] = tensor
        self._tables = pattern[2:]
        mark = _ops.pattern_mark(*pattern[:2])
        self._set_mark(mark)
        self._stamp(mark)

    # Moving, copying, loading

    def _apply(self, fn: Callable, recurse: bool = True) -> SparseLayer:
        row, mark = self.row_indices, self.pattern_mark
        super()._apply(keeps_values(fn), recurse)
        if self.pattern_mark.dtype != torch.float64:
            self._buffers[MARK] = mark.to(self.pattern_mark.device)
        if row.is_meta and not self.row_indices.is_meta:
            # Memory of unknown content must not be taken for indices: the first positions, until others are written.
            self._forget()
            keys = torch.arange(self.nnz, device="cpu")
            self._write(Pattern._from_keys(keys, self.out_features, self.in_features))
        elif self.row_indices is row:
            if self._tables is not None and self._tables[0].is_meta and not row.is_meta:
                self._forget()  # the saved tensors were put in one by one
            elif self._tables is not None:  # as into shared memory
                crow, col, perm = (keeps_values(fn)(table) for table in self._tables)
                self._tables = crow, col, perm
                if self._known is not None:
                    self._stamp(self._known)
        else:
            self._forget()
            if self.row_indices.is_meta:
                self._tables = _ops.transposed(self.ccol_indices, self.row_indices, self.out_features)
            elif self._problem_of_pattern(self.ccol_indices, self.row_indices) is None:
                self._row_view()  # graphs read it without asking
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self._state()

    def _state(self) -> dict[str, Any]:
        if is_plain(self.row_indices) and self._problem_of_pattern(self.ccol_indices, self.row_indices) is None:
            self._row_view()
        state = self.__dict__.copy()
        state.update(_source=None, _source_of_inference=None, _seal=None, _marked=-1)
        state.update(_original=None, _copies=None, _left=None, _written=-1)
        return state

    def __prepare_scriptable__(self) -> None:
        raise TypeError(
            f"{self}: torch.jit.script does not take sparse layers; use torch.jit.trace, torch.export or torch.compile,"
            " or make the model dense with dendnorm.densify"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        buffers = self._buffers
        if MARK not in buffers:  # version 0.1
            for name in _OF_VERSION_0_1:
                buffers.pop(name, None)
            self._non_persistent_buffers_set -= set(_OF_VERSION_0_1)
            device = self.row_indices.device
            buffers[MARK] = torch.zeros(_ops.MARKS, dtype=torch.float64, device=device)
            self._forget()
            if device.type == "meta":
                self._tables = _ops.transposed(self.ccol_indices, self.row_indices, self.out_features)
            elif self._problem_of_pattern(self.ccol_indices, self.row_indices) is None:
                self._adopt()
        elif self._tables is not None and self._known is not None:
            self._stamp(self._known)

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
        problem, found = problem_of_state(self, state_dict, prefix, strict, assign)
        if problem is not None:
            error_msgs.append(f"{prefix[:-1] or type(self).__name__}: {problem}; the layer was left as it was.")
            own = dict(self.named_parameters()) | dict(self.named_buffers())
            for name in own:  # the norm is loaded after this: let it find what it has
                if name.startswith("norm.") and prefix + name in state_dict:
                    state_dict[prefix + name] = own[name]
            return
        if found is not None:
            state_dict[prefix + MARK] = found  # files of version 0.1 have none
        elif prefix + MARK not in state_dict:
            state_dict[prefix + MARK] = self.pattern_mark
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if found is not None and is_plain(self.row_indices):
            self._adopt(self.pattern_mark)

    def __repr__(self) -> str:
        # In one line, as nn.Linear: the norm is part of it and not a child to be listed.
        return f"{self._get_name()}({self.extra_repr()})"
