"""A saved pattern, and the row view that is derived from it whenever the saved tensors have changed.

Two buffers are saved, the column view of the pattern. Kernels need the row view, too. It belongs to the memory that it
was derived from, so it is kept with what tells that memory: which tensors, how often they were written, where they lie.
A call compares these, and derives anew what does not match: whoever sets, swaps, moves or overwrites the saved tensors
need not know of it.

A third buffer marks the pattern: eight numbers that any other pattern changes. Writes through ``.data``, under
inference mode, by a collective or by NumPy are not counted; in host memory a call therefore looks at the mark's own
bytes, which are written with the rest. Averages of weights (EMA, SWA) go over buffers in floating
point and round indices down; where the mark is as it was, the patterns were equal, and the indices are put back
exactly.
Where it is another, patterns were mixed, which is refused.
"""

from __future__ import annotations

import copy
import ctypes
import sys
import weakref
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling
from torch.optim.swa_utils import AveragedModel

from ..ops import library as _ops
from .marks import MARK, SAVED, is_plain, same_marks

__all__ = ["Patterned", "Tables"]

_MIXTURE = (
    "an average of values from before a rewiring with values from after it. Let averages follow each rewiring:"
    " dendnorm.integrations.averages.follow"
)
_BYTES_OF_MARK = 8 * _ops.MARKS

Tables = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _is_averaged() -> bool:
    """Whether an ``AveragedModel`` is being called, whose first update copies."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is AveragedModel.forward.__code__:
            return True
    return False


class Patterned(nn.Module):
    """A module that saves a pattern of nnz connections among M x N positions."""

    in_features: int
    out_features: int
    weight: nn.Parameter  # (nnz,)
    ccol_indices: torch.Tensor
    row_indices: torch.Tensor
    pattern_mark: torch.Tensor
    _buffers: dict[str, torch.Tensor]  # type: ignore[assignment]  # the three above, always
    _tables: Tables | None
    _source: tuple | None  # what the tables were derived from: see _stamp
    _source_of_inference: tuple | None = None
    _seal: tuple[torch.Tensor, int, bytes] | None = None  # the mark, where it lies, and what was there
    _known: torch.Tensor | None  # the mark of that pattern
    _marked: int  # how often the mark had been written
    _original: weakref.ref[Patterned] | None = None  # what this layer is a copy of, for as long as that lives
    _copies: weakref.WeakSet[Patterned] | None = None  # and the other way round
    _left: torch.Tensor | None = None  # the sum of a copy's values when the original took another pattern
    _written = 0  # how often a copy's values had been written when it was made

    def _allocate_pattern(self, in_features: int, out_features: int, nnz: int, device: torch.device) -> None:
        """Buffers of these sizes, which are no pattern yet."""
        self.in_features, self.out_features = in_features, out_features
        for name, size in zip(SAVED, (in_features + 1, nnz), strict=True):
            self.register_buffer(name, torch.zeros(size, device=device, dtype=torch.int32))
        self.register_buffer(MARK, torch.zeros(_ops.MARKS, device=device, dtype=torch.float64))
        self._forget()
        if device.type == "meta":
            # Traced where nothing has values, the row view is tensors like any other.
            self._tables = _ops.transposed(self.ccol_indices, self.row_indices, out_features)

    def _forget(self) -> None:
        self._tables = self._source = self._source_of_inference = self._known = self._seal = None
        self._marked = -1

    def _row_view(self) -> Tables:
        """The row view of the pattern as it is now: crow_indices, col_indices and perm."""
        return self._traced_view() if is_compiling() else self._present_view()

    def _present_view(self) -> Tables:
        buffers = self._buffers
        if _ops.stamp_fits(buffers, self._source, self._seal) and self._left is None:
            return self._tables  # type: ignore[return-value]
        return self._derived(buffers["ccol_indices"], buffers["row_indices"])

    def _traced_view(self) -> Tables:
        """A graph reads the tables where they lie, as it reads parameters; rewiring writes into them."""
        ccol, tables = self._buffers["ccol_indices"], self._tables
        if tables is None or tables[0].device != ccol.device:
            return _ops.transposed(ccol, self._buffers["row_indices"], self.out_features)
        return tables

    def _derived(self, ccol: torch.Tensor, row: torch.Tensor) -> Tables:
        if not (is_plain(ccol) and is_plain(row)):
            if ccol.is_meta and self._tables is not None and self._tables[0].is_meta:
                return self._tables
            return _ops.transposed(ccol, row, self.out_features)
        if self._left is not None and _ops.stamp_fits(self._buffers, self._source, None) and not self._mark_written():
            self._refuse_values_of_the_next_pattern()
            return self._tables  # type: ignore[return-value]
        source = self._source
        if source is None and self._tables is not None and self._source_of_inference == self._places(ccol, row):
            return self._tables  # without versions
        with torch.inference_mode(False), torch.no_grad():
            if getattr(self.__dict__.get("_hf_hook"), "offload", False):  # memory that goes after each call
                self._forget()
                self._check_pattern(ccol, row)
                return _ops.transposed(ccol, row, self.out_features)
            return self._settled(ccol, row)

    def _settled(self, ccol: torch.Tensor, row: torch.Tensor) -> Tables:
        """Find out what the saved tensors hold now, and derive the row view anew where it is another pattern."""
        tables = self._tables
        source, mark = self._source, self._buffers[MARK]
        in_place = source is not None and source[0] is ccol and source[1] is row
        problem = self._problem_of_pattern(ccol, row)
        found = _ops.pattern_mark(ccol, row) if problem is None else None
        if in_place and self._mark_written() and is_plain(mark):
            held = same_marks(mark, self._known)
            if held and tables is not None and not (found is not None and same_marks(found, self._known)):
                self._restore(ccol, row, tables)  # an average with equals
                return tables
            if not held and not (found is not None and same_marks(mark, found)):
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
            tables = self._tables = _ops.transposed(ccol, row, self.out_features)
        elif not same_marks(found, self._known):
            if in_place:
                self._refuse_values_of_two_patterns(found)
            fresh = _ops.transposed(ccol, row, self.out_features)
            if in_place and len(tables[1]) == len(row):
                for mine, new in zip(tables, fresh, strict=True):
                    mine.copy_(new)  # graphs know where they lie
            else:
                tables = self._tables = fresh
        self._set_mark(found)
        self._stamp(found)
        return tables

    def _refuse_values_of_two_patterns(self, found: torch.Tensor) -> None:
        """An average that takes over buffers and averages parameters alone, as `AveragedModel` does, once the original
        was rewired: the copy has been given the original's new pattern, and values that are not the original's."""
        original = self._original() if self._original is not None else None
        if original is None or not same_marks(found, original._known):
            return
        mine, theirs = self._parameters.get("weight"), original._parameters.get("weight")
        if mine is None or theirs is None or not (is_plain(mine) and is_plain(theirs)) or mine.shape != theirs.shape:
            return
        if self._written >= 0 and _is_averaged():
            return  # an average that begins now, with a copy of the original
        if not torch.equal(mine.cpu(), theirs.to("cpu", mine.dtype)):
            raise ValueError(
                f"{self}: weight must hold values of the pattern, got the pattern of the layer that this one was copied"
                f" from and other values: {_MIXTURE}. To restore other values for this pattern, load a state_dict"
            )

    def _leave_copies(self) -> None:
        """Another pattern is about to be taken: an average of parameters alone would go on with values of that one."""
        for twin in self._copies or ():
            weight = twin._parameters.get("weight")
            if weight is None or not is_plain(weight) or weight.is_inference():
                continue
            if weight._version != twin._written:
                twin._written = -1
            if twin._left is None:
                twin._left = weight.detach().double().sum()

    def _refuse_values_of_the_next_pattern(self) -> None:
        """A copy whose values were written since its original took another pattern, and not by training."""
        weight, left = self._parameters.get("weight"), self._left
        original = self._original() if self._original is not None else None
        if weight is None or left is None or not is_plain(weight):
            return
        if weight.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        if weight.grad is not None or (original is not None and same_marks(original.pattern_mark, self._known)):
            self._left = None
        elif bool(weight.detach().double().sum().to(left.device) != left):
            raise ValueError(
                f"{self}: weight must hold values of the pattern, got others since the layer that this one was copied"
                f" from was rewired: {_MIXTURE}. To give this layer other values, load a state_dict"
            )
        elif weight.requires_grad and torch.is_grad_enabled():  # about to be trained: a layer of its own
            self._left = None
            if original is not None and original._copies is not None:
                original._copies.discard(self)

    def _state(self) -> dict[str, Any]:
        """What copies and pickles hold."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Patterned:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self._state(), memo))  # a parametrized class refuses to be pickled
        # What is copied together with its original is a copy of that one's copy.
        known = self._original() if self._original is not None else None
        original = memo.get(id(known), self) if known is not None else self
        twin._original = weakref.ref(original)
        if original._copies is None:
            original._copies = weakref.WeakSet()
        original._copies.add(twin)
        weight = twin._parameters.get("weight")
        twin._written = weight._version if weight is not None and is_plain(weight) and not weight.is_inference() else -1
        return twin

    def _was_overwritten(self) -> bool:
        """Derive anew what was written in ways that nothing counts: under inference mode, by a collective, by NumPy."""
        ccol, row = self._buffers["ccol_indices"], self._buffers["row_indices"]
        if not (is_plain(ccol) and is_plain(row)):
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
        exact, rows, _ = _ops.transposed(tables[0], tables[1], self.in_features)
        ccol.copy_(exact)
        row.copy_(rows)
        self._set_mark(self._known)
        self._stamp(self._known)

    def _mark_written(self) -> bool:
        mark, seal = self._buffers[MARK], self._seal
        if not mark.is_inference() and mark._version != self._marked:
            return True
        return (
            seal is not None
            and seal[0] is mark
            and mark.data_ptr() == seal[1]
            and ctypes.string_at(seal[1], _BYTES_OF_MARK) != seal[2]
        )

    def _set_mark(self, mark: torch.Tensor) -> None:
        own = self._buffers[MARK]
        if own is not None and is_plain(own) and own.dtype == torch.float64 and own.device == mark.device:
            with torch.inference_mode(own.is_inference() or torch.is_inference_mode_enabled()):
                own.copy_(mark)
        else:
            self._buffers[MARK] = mark.clone()

    @staticmethod
    def _places(ccol: torch.Tensor, row: torch.Tensor) -> tuple:
        return id(ccol), id(row), ccol.data_ptr(), row.data_ptr()

    def _stamp(self, mark: torch.Tensor) -> None:
        """The tables belong to the saved tensors as they are now, whose mark this is."""
        ccol, row, own = (self._buffers[name] for name in (*SAVED, MARK))
        self._known = mark.detach()
        self._marked = -1 if own.is_inference() else own._version
        self._left = None
        self._seal = None
        if is_plain(own) and own.device.type == "cpu" and own.dtype == torch.float64 and own.is_contiguous():
            self._seal = own, own.data_ptr(), ctypes.string_at(own.data_ptr(), _BYTES_OF_MARK)
        if ccol.is_inference() or row.is_inference():  # which count no writes
            self._source, self._source_of_inference = None, self._places(ccol, row)
        else:
            self._source = (ccol, row, ccol._version, row._version, ccol.data_ptr(), row.data_ptr())
            self._source_of_inference = None
        for table in self._tables or ():
            table.__dict__["_dynamo_static_input_type"] = "unguarded"  # as torch._dynamo.mark_static_address

    def _adopt(self, mark: torch.Tensor | None = None) -> None:
        """Derive the row view of a pattern that is known to be sound, where graphs know it to lie."""
        ccol, row = self._buffers["ccol_indices"], self._buffers["row_indices"]
        source, tables = self._source, self._tables
        with torch.inference_mode(False), torch.no_grad():
            # All that takes memory comes first: tables of one pattern and the mark of another would go unnoticed.
            fresh = _ops.transposed(ccol, row, self.out_features)
            mark = _ops.pattern_mark(ccol, row) if mark is None else mark.clone()
            if source is not None and source[1] is row and tables is not None:
                for mine, new in zip(tables, fresh, strict=True):
                    mine.copy_(new)
            else:
                self._tables = fresh
            self._set_mark(mark)
            self._stamp(mark)

    def _check_pattern(self, ccol_indices: Any, row_indices: Any) -> None:
        """Refuse what is no pattern of this shape and nnz: ValueError."""
        for name, tensor in zip(SAVED, (ccol_indices, row_indices), strict=True):
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
        _ops.check_view(ccol_indices, row_indices, self.in_features, self.out_features, *SAVED)

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
