"""What a rewiring did, told while the device may still be doing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch

from ..ops import library as _ops

__all__ = ["Edges", "LayerReport", "Outcome", "RewireReport", "of_layer"]

Edges = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class LayerReport:
    """What one rewiring did to one layer.

    Attributes:
        name: the layer's name in the model.
        k: how many connections went, and as many came.
        removed, grown: output and input neuron of each (of a convolution filter and tap, the row and the column of its
            pattern): two int64 tensors (k,), in column order. A position may be in both: one that was emptied is as
            likely to be taken again as any other. Of a sharded layer they are in host memory.
        nnz: number of connections of the layer, the same before and after.
    """

    name: str
    k: int
    removed: Edges
    grown: Edges
    nnz: int

    def __repr__(self) -> str:
        return f"LayerReport(name={self.name!r}, k={self.k}, nnz={self.nnz})"


class RewireReport(Sequence):
    """What one rewiring did: a sequence of ``LayerReport``, in the order of the layers.

    On a GPU, ``SET.step`` returns before the device has done its work. Whoever looks at a layer's report waits for the
    device, and gets the ValueError that ``step`` would have raised on the CPU.

    Attributes:
        step: the number of this rewiring, from 1.
        layers: the reports, a tuple.
        left: the names of the sparse layers that were left alone because their weight does not train.
    """

    def __init__(
        self,
        step: int,
        layers: tuple[LayerReport, ...],
        outcome: Outcome | None = None,
        left: tuple[str, ...] = (),
    ) -> None:
        self.step, self.left = step, left
        self._layers, self._outcome = layers, outcome

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        if self._outcome is not None:
            self._outcome.check()
        return self._layers

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    @overload
    def __getitem__(self, index: int) -> LayerReport: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerReport, ...]: ...
    def __getitem__(self, index):
        return self.layers[index]

    def __getstate__(self) -> dict[str, Any]:
        return {"step": self.step, "left": self.left, "_layers": self.layers, "_outcome": None}

    def __repr__(self) -> str:
        left = f", left={self.left!r}" if self.left else ""
        return f"RewireReport(step={self.step}, layers={self._layers!r}{left})"

    def __str__(self) -> str:
        lines = [f"{layer.name or 'layer'}: {layer.k} of {layer.nnz} connections replaced" for layer in self.layers]
        lines += [f"{name or 'layer'}: left alone, it does not train" for name in self.left]
        return "\n".join([f"rewiring {self.step}", *(f"  {line}" for line in lines)])


class Outcome:
    """How a rewiring went that the device does in its own time."""

    def __init__(self, status: torch.Tensor, names: list[str], failed: Callable[[Outcome], None]) -> None:
        self._names, self._failed = names, failed
        self._message: str | None = None
        self._status: torch.Tensor | None = status
        self._done: torch.cuda.Event | None = None
        if status.is_cuda:
            self._status = torch.empty(status.shape, dtype=status.dtype, device="cpu", pin_memory=True)
            self._status.copy_(status, non_blocking=True)
            self._done = torch.cuda.current_stream(status.device).record_event()

    def check(self) -> None:
        """Wait until it is known; raise what was wrong."""
        if self._status is not None:
            if self._done is not None:
                self._done.synchronize()
            status, self._status = self._status, None
            for name, row in zip(self._names, status, strict=True):
                try:
                    _ops.raise_fault(row)
                except RuntimeError as error:
                    self._message = str(of_layer(name, error))
                    self._failed(self)
                    break
        if self._message is not None:
            raise ValueError(self._message)


def of_layer(name: str, error: Exception) -> Exception:
    """The first line of an op's or a rule's refusal; what may follow is a trace through C++. Other errors stay."""
    message = str(error).partition("\n")[0]
    return ValueError(f"layer {name!r}: {message}") if type(error) in (RuntimeError, ValueError) else error
