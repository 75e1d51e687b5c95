"""How what belongs to a weight entry by entry moves with its connections, in place or to another number of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..ops import library as _ops
from .fresh import Fresh, Value
from .quantised import Codes, gathered

__all__ = ["Dense", "Quantised", "Write", "carry"]

Write = Callable[[torch.Tensor | None], None]
"""Writes where the status that it is given tells of no fault."""


@dataclass(frozen=True)
class Dense:
    """A tensor of the weight's shape, and what a new connection's entry becomes."""

    tensor: torch.Tensor
    fresh: Fresh = 0.0

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.tensor]

    def fill(self, values: torch.Tensor) -> torch.Tensor:
        """For new connections of these values: () or (k,), on the tensor's device."""
        if isinstance(self.fresh, Value):
            return values.to(self.tensor.device, self.tensor.dtype)
        if isinstance(self.fresh, torch.Tensor):
            return self.fresh.detach().reshape(()).to(self.tensor.device, self.tensor.dtype)
        # Filled by the device: nothing is copied to it, and nothing waits.
        return torch.full((), self.fresh, dtype=self.tensor.dtype, device=self.tensor.device)

    def prepared(self, source: torch.Tensor, values: torch.Tensor) -> Write:
        fill = self.fill(values)
        return lambda status: carry(self.tensor, source, fill, status)

    def resized(self, source: torch.Tensor, values: torch.Tensor) -> dict[int, Any]:
        return {id(self.tensor): gathered(self.tensor, source, self.fill(values))}


@dataclass(frozen=True)
class Quantised:
    """State in blocks of codes; a new connection's is 0."""

    codes: Codes

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.codes.codes, self.codes.scale]

    def _moved(self, source: torch.Tensor) -> torch.Tensor:
        values = self.codes.values()
        return gathered(values, source, values.new_zeros(()))

    def prepared(self, source: torch.Tensor, values: torch.Tensor) -> Write:
        pairs = list(zip(self.tensors, self.codes.quantised(self._moved(source)), strict=True))

        def write(status: torch.Tensor | None) -> None:
            for old, new in pairs:
                _assign(old, new, status)

        return write

    def resized(self, source: torch.Tensor, values: torch.Tensor) -> dict[int, Any]:
        return self.codes.resized(self._moved(source))


def carry(values: torch.Tensor, source: torch.Tensor, fill: torch.Tensor, status: torch.Tensor | None) -> None:
    """Move entries in place: those of new connections become ``fill``, () or one for each in order."""
    device = values.device
    if _ops.has_kernel("carry_", device):
        _ops.carry_(values, source.to(device), fill.to(device), sound=True, status=status)
    else:
        moved = values.cpu()
        _ops.carry_(moved, source.cpu(), fill.cpu(), sound=True)
        values.copy_(moved)


def _assign(old: torch.Tensor, new: torch.Tensor, status: torch.Tensor | None) -> None:
    if status is None:
        old.copy_(new)
    elif old.dtype.itemsize == 1:
        _ops.assign_(old.view(torch.uint8), new.view(torch.uint8), status=status)
    else:
        _ops.assign_(old, new, status=status)
