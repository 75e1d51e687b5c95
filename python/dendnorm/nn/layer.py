"""What every sparse layer holds: values, bias, norm, a pattern, and the row view that is derived from it.

The pattern is that of a matrix: a row is an output neuron, or a filter of a convolution, and a column what it may be
connected to, an input neuron or a tap of its window.

Two buffers are saved, the column view of the pattern. Kernels need the row view, too. It belongs to the memory that it
was derived from, so it is kept with what tells that memory: which tensors, how often they were written, where they lie.
A call compares these, and derives anew what does not match: whoever sets, swaps, moves or overwrites the saved tensors
need not know of it.

A third buffer marks the pattern: eight numbers that any other pattern changes. Averages of weights (EMA, SWA) go over
buffers in floating point and round indices down; where the mark is as it was, the patterns were equal, and the indices
are put back exactly. Where it is another, patterns were mixed, which is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from .._arguments import INT32_MAX, seed_of
from ..ops import library as _ops
from .computed import computed
from .norms import Norm, keeps_values
from .pattern import MARKS, Pattern, check_view, mark_of, transposed

__all__ = ["SparseLayer"]

_SAVED = ("ccol_indices", "row_indices")
_MARK = "pattern_mark"
_OF_VERSION_0_1 = ("crow_indices", "col_indices", "perm")  # were buffers, not saved
_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)

Tables = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is memory of its own: not traced, batched or distributed."""
    return (
        type(tensor) in _PLAIN
        and not tensor.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)
    )


def parameter_of(module: nn.Module, name: str) -> Any:
    """A parameter, from where it lies unless a parametrization or a hook has moved it: several times faster."""
    parameters = module._parameters
    return parameters[name] if name in parameters else computed(module, name)


class SparseLayer(nn.Module):
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

    in_features: int
    out_features: int
    weight: nn.Parameter
    bias: nn.Parameter | None
    norm: Norm
    ccol_indices: torch.Tensor
    row_indices: torch.Tensor
    pattern_mark: torch.Tensor
    _buffers: dict[str, torch.Tensor]  # type: ignore[assignment]  # the three above, always
    _tables: Tables | None
    _source: tuple | None  # what the tables were derived from: see _stamp
    _source_of_inference: tuple | None = None
    _known: torch.Tensor | None  # the mark of that pattern
    _marked: int  # how often the mark had been written

    def _allocate(
        self, in_features: int, out_features: int, nnz: int, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Parameters and buffers of these sizes, none of which is a pattern yet."""
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(nnz, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        )
        for name, size in zip(_SAVED, (in_features + 1, nnz), strict=True):
            self.register_buffer(name, torch.zeros(size, device=device, dtype=torch.int32))
        self.register_buffer(_MARK, torch.zeros(MARKS, device=device, dtype=torch.float64))
        self._forget()
        if device.type == "meta":
            # Traced where nothing has values, the row view is tensors like any other.
            self._tables = transposed(self.ccol_indices, self.row_indices, out_features)

    # The row view

    def _forget(self) -> None:
        self._tables = self._source = self._source_of_inference = self._known = None
        self._marked = -1

    def _row_view(self) -> Tables:
        """The row view of the pattern as it is now: crow_indices, col_indices and perm."""
        buffers, source = self._buffers, self._source
        ccol, row = buffers["ccol_indices"], buffers["row_indices"]
        if is_compiling():
            return self._traced_view(ccol, row)
        if (
            source is not None
            and source[0] is ccol
            and source[1] is row
            and ccol._version == source[2]
            and row._version == source[3]
            and row.data_ptr() == source[4]
            and ccol.data_ptr() == source[5]
        ):
            return self._tables  # type: ignore[return-value]
        return self._derived(ccol, row)

    def _traced_view(self, ccol: torch.Tensor, row: torch.Tensor) -> Tables:
        """A graph reads the tables where they lie, as it reads parameters; rewiring writes into them."""
        tables = self._tables
        if tables is None or tables[0].device != ccol.device:
            return transposed(ccol, row, self.out_features)
        return tables

    def _derived(self, ccol: torch.Tensor, row: torch.Tensor) -> Tables:
        if not (_is_plain(ccol) and _is_plain(row)):
            if ccol.is_meta and self._tables is not None and self._tables[0].is_meta:
                return self._tables
            return transposed(ccol, row, self.out_features)
        source = self._source
        if source is None and self._tables is not None and self._source_of_inference == self._places(ccol, row):
            return self._tables  # without versions
        with torch.inference_mode(False), torch.no_grad():
            if getattr(self.__dict__.get("_hf_hook"), "offload", False):  # memory that goes after each call
                self._forget()
                self._check_pattern(ccol, row)
                return transposed(ccol, row, self.out_features)
            return self._settled(ccol, row)

    def _settled(self, ccol: torch.Tensor, row: torch.Tensor) -> Tables:
        """Find out what the saved tensors hold now, and derive the row view anew where it is another pattern."""
        tables = self._tables
        source, mark = self._source, self._buffers[_MARK]
        in_place = source is not None and source[0] is ccol and source[1] is row
        problem = self._problem_of_pattern(ccol, row)
        found = mark_of(ccol, row) if problem is None else None
        if in_place and self._mark_written() and _is_plain(mark):
            held = self._same_marks(mark, self._known)
            if held and tables is not None and not (found is not None and self._same_marks(found, self._known)):
                self._restore(ccol, row, tables)  # an average with equals
                return tables
            if not held and not (found is not None and self._same_marks(mark, found)):
                raise ValueError(
                    f"{self}: ccol_indices, row_indices and pattern_mark must be those of one pattern, got a mixture:"
                    " buffers were averaged with those of a layer that is connected otherwise. Average parameters alone"
                    " (use_buffers=False) and let averages follow each rewiring:"
                    " dendnorm.integrations.averages.follow"
                )
        if found is None:
            raise ValueError(
                f"{self}: {problem}; the layer's pattern was overwritten with what is none. Load a state_dict, or call"
                " reset_parameters()"
            )
        if tables is None or tables[0].device != ccol.device:
            tables = self._tables = transposed(ccol, row, self.out_features)
        elif not self._same_marks(found, self._known):
            fresh = transposed(ccol, row, self.out_features)
            if in_place and len(tables[1]) == len(row):
                for mine, new in zip(tables, fresh, strict=True):
                    mine.copy_(new)  # graphs know where they lie
            else:
                tables = self._tables = fresh
        self._set_mark(found)
        self._stamp(found)
        return tables

    def _was_overwritten(self) -> bool:
        """Derive anew what was written in ways that nothing counts: under inference mode, by a collective, by NumPy."""
        ccol, row = self._buffers["ccol_indices"], self._buffers["row_indices"]
        if not (_is_plain(ccol) and _is_plain(row)):
            return False
        with torch.inference_mode(False), torch.no_grad():
            self._settled(ccol, row)
        return True

    def _problem_of_pattern(self, ccol: torch.Tensor, row: torch.Tensor) -> str | None:
        try:
            self._check_pattern(ccol, row)
        except ValueError as error:
            return str(error)
        return None

    def _restore(self, ccol: torch.Tensor, row: torch.Tensor, tables: Tables) -> None:
        """The saved tensors again, exactly, from the row view."""
        assert self._known is not None
        exact, rows, _ = transposed(tables[0], tables[1], self.in_features)
        ccol.copy_(exact)
        row.copy_(rows)
        self._set_mark(self._known)
        self._stamp(self._known)

    @staticmethod
    def _same_marks(mine: torch.Tensor, known: torch.Tensor | None) -> bool:
        if known is None:
            return False
        # An average that is hardly begun differs by little, and the rounding of one with equals by less.
        room = 1e-6 if mine.dtype == torch.float64 else 1e-2
        return bool(((mine.detach().double().cpu() - known.double().cpu()).abs() < room).all())

    def _mark_written(self) -> bool:
        mark = self._buffers[_MARK]
        return not mark.is_inference() and mark._version != self._marked

    def _set_mark(self, mark: torch.Tensor) -> None:
        own = self._buffers[_MARK]
        if own is not None and _is_plain(own) and own.dtype == torch.float64 and own.device == mark.device:
            if not own.is_inference():
                own.copy_(mark)
        else:
            self._buffers[_MARK] = mark.clone()

    @staticmethod
    def _places(ccol: torch.Tensor, row: torch.Tensor) -> tuple:
        return id(ccol), id(row), ccol.data_ptr(), row.data_ptr()

    def _stamp(self, mark: torch.Tensor) -> None:
        """The tables belong to the saved tensors as they are now, whose mark this is."""
        ccol, row, own = (self._buffers[name] for name in (*_SAVED, _MARK))
        self._known = mark.detach().clone()
        self._marked = -1 if own.is_inference() else own._version
        if ccol.is_inference() or row.is_inference():  # which count no writes
            self._source, self._source_of_inference = None, self._places(ccol, row)
        else:
            self._source = (ccol, row, ccol._version, row._version, row.data_ptr(), ccol.data_ptr())
            self._source_of_inference = None
        for table in self._tables or ():
            table.__dict__["_dynamo_static_input_type"] = "unguarded"  # as torch._dynamo.mark_static_address

    def _adopt(self, mark: torch.Tensor | None = None) -> None:
        """Derive the row view of a pattern that is known to be sound, where graphs know it to lie."""
        ccol, row = self._buffers["ccol_indices"], self._buffers["row_indices"]
        source, tables = self._source, self._tables
        with torch.inference_mode(False), torch.no_grad():
            fresh = transposed(ccol, row, self.out_features)
            if source is not None and source[1] is row and tables is not None:
                for mine, new in zip(tables, fresh, strict=True):
                    mine.copy_(new)
            else:
                self._tables = fresh
            mark = mark_of(ccol, row) if mark is None else mark
            self._set_mark(mark)
            self._stamp(mark)

    # The pattern

    @property
    def crow_indices(self) -> torch.Tensor:
        """(M + 1,), where the connections of each output neuron begin in row order."""
        return self._row_view()[0]

    @property
    def col_indices(self) -> torch.Tensor:
        """(nnz,), the input neuron of each connection, in row order."""
        return self._row_view()[1]

    @property
    def perm(self) -> torch.Tensor:
        """(nnz,), the position in ``weight`` of each connection in row order."""
        return self._row_view()[2]

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
        return parameter_of(norm, "excitability")

    def effective_weight(self) -> torch.Tensor:
        """w: (nnz,), in the order of ``weight``; differentiable in the values and the excitability."""
        weight, norm = parameter_of(self, "weight"), self.norm
        return _ops.effective_weight(weight, self._excitability(), *self.pattern, norm.a, norm.b, norm.p)

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
            return self._product(input)
        try:
            return self._product(input)
        except ValueError as error:
            if "views of different patterns" not in str(error) or not self._was_overwritten():
                raise
        return self._product(input)

    def _product(self, input: torch.Tensor) -> torch.Tensor:
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
        self.weight.copy_(values.mul_(self.norm.deviation(self.nnz / self.out_features)))
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

    def _write(self, pattern: Pattern, status: torch.Tensor | None = None) -> None:
        """Take a sound pattern, in place; nothing is written where a status, on a GPU, tells of a fault."""
        tables, device = self._tables, self.row_indices.device
        if tables is None or tables[0].device != device:
            with torch.inference_mode(False):
                tables = tuple(torch.empty_like(tensor, device=device) for tensor in pattern[2:])  # type: ignore[assignment]
                self._tables = tables
        own = (self.ccol_indices, self.row_indices, *tables)  # type: ignore[misc]
        mark = mark_of(*pattern[:2]).to(self.pattern_mark.device)
        for buffer, tensor in zip(own, pattern, strict=True):
            if status is None:
                buffer.copy_(tensor)
            else:
                _ops.assign_(buffer, tensor, status=status)
        if status is not None:
            mark = torch.where(status[0] == _ops.CLEAR, mark, self.pattern_mark)
        self._set_mark(mark)
        self._stamp(mark)

    def _replace_pattern(self, pattern: Pattern) -> None:
        """Take a sound pattern of any number of connections, with new tensors; the caller has replaced ``weight``."""
        self._forget()
        for name, tensor in zip(_SAVED, pattern[:2], strict=True):
            self._buffers[name] = tensor
        self._tables = pattern[2:]
        mark = mark_of(*pattern[:2])
        self._set_mark(mark)
        self._stamp(mark)

    def _check_pattern(self, ccol_indices: Any, row_indices: Any) -> None:
        for name, tensor in zip(_SAVED, (ccol_indices, row_indices), strict=True):
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.int32 or tensor.dim() != 1:
                kind = (
                    (tensor.dtype, tuple(tensor.shape)) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                )
                raise ValueError(f"{name} must be an int32 tensor of one dimension, got {kind}")
        if len(row_indices) != len(self.weight):
            raise ValueError(
                f"row_indices must have {len(self.weight)} entries, as many as the layer has connections, got"
                f" {len(row_indices)}; build the layer with nnz={len(row_indices)}"
            )
        check_view(ccol_indices, row_indices, self.in_features, self.out_features, _SAVED)

    # Moving, copying, loading

    def _apply(self, fn: Callable, recurse: bool = True) -> SparseLayer:
        row, mark = self.row_indices, self.pattern_mark
        super()._apply(keeps_values(fn), recurse)
        if self.pattern_mark.dtype != torch.float64:
            self._buffers[_MARK] = mark.to(self.pattern_mark.device)
        if row.is_meta and not self.row_indices.is_meta:
            # Memory of unknown content must not be taken for indices: the first positions, until others are written.
            self._forget()
            keys = torch.arange(self.nnz, device="cpu")
            self._write(Pattern._from_keys(keys, self.out_features, self.in_features))
        elif self.row_indices is row:
            if self._tables is not None:  # as into shared memory
                crow, col, perm = (keeps_values(fn)(table) for table in self._tables)
                self._tables = crow, col, perm
                if self._known is not None:
                    self._stamp(self._known)
        else:
            self._forget()
            if self.row_indices.is_meta:
                self._tables = transposed(self.ccol_indices, self.row_indices, self.out_features)
            elif self._problem_of_pattern(self.ccol_indices, self.row_indices) is None:
                self._row_view()  # graphs read it without asking
        return self

    def __getstate__(self) -> dict[str, Any]:
        if _is_plain(self.row_indices) and self._problem_of_pattern(self.ccol_indices, self.row_indices) is None:
            self._row_view()
        state = self.__dict__.copy()
        state.update(_source=None, _source_of_inference=None, _marked=-1)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        buffers = self._buffers
        if _MARK not in buffers:  # version 0.1
            for name in _OF_VERSION_0_1:
                buffers.pop(name, None)
            self._non_persistent_buffers_set -= set(_OF_VERSION_0_1)
            device = self.row_indices.device
            buffers[_MARK] = torch.zeros(MARKS, dtype=torch.float64, device=device)
            self._forget()
            if device.type == "meta":
                self._tables = transposed(self.ccol_indices, self.row_indices, self.out_features)
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
        problem = self._problem_of(state_dict, prefix, strict, assign)
        if problem is not None:
            error_msgs.append(f"{prefix[:-1] or type(self).__name__}: {problem}; the layer was left as it was.")
            own = dict(self.named_parameters()) | dict(self.named_buffers())
            for name in own:  # the norm is loaded after this: let it find what it has
                if name.startswith("norm.") and prefix + name in state_dict:
                    state_dict[prefix + name] = own[name]
            return
        patterned = prefix + "row_indices" in state_dict
        if patterned:
            found = mark_of(*(state_dict[prefix + name] for name in _SAVED))
            state_dict[prefix + _MARK] = found  # files of version 0.1 have none
        elif prefix + _MARK not in state_dict:
            state_dict[prefix + _MARK] = self.pattern_mark
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if patterned and _is_plain(self.row_indices):
            self._adopt(self.pattern_mark)

    def _problem_of(self, state_dict: dict[str, Any], prefix: str, strict: bool, assign: bool) -> str | None:
        """What keeps a state_dict from being loaded, found before anything has changed."""
        own: dict[str, torch.Tensor] = {name: tensor for name, tensor in self.named_parameters()}
        own |= {name: getattr(self, name) for name in _SAVED}
        given = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        missing = [name for name in own if name not in given]
        # Values belong to the pattern that they were saved with.
        patterned = any(name in given for name in _SAVED)
        if missing and (strict or (patterned and {"weight", *_SAVED} & set(missing))):
            return f"the state_dict must hold {', '.join(prefix + name for name in own)}, got none of {missing}"
        for name, tensor in given.items():
            if not isinstance(tensor, torch.Tensor):
                return f"{name} must be a tensor, got {type(tensor).__name__}"
            if tensor.shape != own[name].shape:
                hint = f"; build the layer with nnz={tensor.numel()}" if name in ("weight", "row_indices") else ""
                return f"{name} must have shape {tuple(own[name].shape)}, got {tuple(tensor.shape)}{hint}"
            if name in _SAVED:
                if tensor.is_floating_point():  # an average of equal patterns
                    whole = tensor.round()
                    if not bool((tensor == whole).all()) or bool((whole.abs() > INT32_MAX).any()):
                        return f"{name} must hold whole numbers, got an average of different patterns"
                    given[name] = state_dict[prefix + name] = whole.to(torch.int32)
            elif tensor.dtype not in (torch.float32, torch.float64) and (assign or not tensor.is_floating_point()):
                return f"{name} must be of dtype float32 or float64, got {tensor.dtype}"
        if patterned:
            try:
                self._check_pattern(given["ccol_indices"], given["row_indices"])
            except (ValueError, TypeError) as error:
                return str(error)
            return self._problem_of_mark(state_dict.get(prefix + _MARK), given)
        return None

    def _problem_of_mark(self, mark: Any, given: dict[str, torch.Tensor]) -> str | None:
        if mark is None or given["row_indices"].is_meta or self.row_indices.is_meta:
            return None
        if not isinstance(mark, torch.Tensor) or mark.shape != (MARKS,):
            return f"{_MARK} must be a tensor of shape ({MARKS},), got {getattr(mark, 'shape', type(mark).__name__)}"
        if mark.is_meta or self._same_marks(mark, mark_of(given["ccol_indices"], given["row_indices"])):
            return None
        return f"{_MARK} must be that of the pattern, got another: the state is a mixture of different patterns"

    def __repr__(self) -> str:
        # In one line, as nn.Linear: the norm is part of it and not a child to be listed.
        return f"{self._get_name()}({self.extra_repr()})"
