"""State that is kept as 8-bit or 4-bit codes with one scale for each block of entries: how it moves.

An entry that moves may come into another block, so codes do not move: what they stand for does, and is quantised again
with the new blocks' scales. That costs what every step of such an optimizer costs, half a gap between two codes of the
new block. What is not 0 in a second moment does not become 0, or the next step would divide by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Codes", "codes_of", "gathered", "wraps_codes"]

_TORCHAO = ("OptimState8bit", "OptimState4bit", "OptimStateFp8")
_BLOCKS = tuple(1 << power for power in range(4, 17))


def gathered(values: torch.Tensor, source: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    """One entry for each connection, from where it was; where `source` is -1 those of `fill`, () or in order."""
    source = source.to(values.device).long()
    fresh = source < 0
    moved = values[source.clamp(min=0)] if len(values) else values.new_zeros(len(source))
    if fill.dim():
        # No count of the new ones, which a device would have to tell.
        fill = fill[(fresh.cumsum(0) - 1).clamp(min=0)] if len(fill) else moved
    return torch.where(fresh, fill.to(values.device, values.dtype), moved)


@dataclass(frozen=True)
class Codes:
    """One tensor of an optimizer's state in blocks.

    Attributes:
        codes: uint8 or float8, one for each entry, or two to the byte.
        scale: float, one for each block; the last block may be shorter.
        table: float, ascending, what each code stands for at a scale of 1; None: the codes are numbers themselves.
        block: entries to a block.
        wrapper: the tensor subclass around them, or None.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    table: torch.Tensor | None
    block: int
    wrapper: Any = None

    @property
    def _packed(self) -> bool:
        return self.table is not None and len(self.table) == 16

    def values(self) -> torch.Tensor:
        """What the codes stand for, (n,) float32."""
        codes = self.codes
        if self._packed:
            codes = torch.stack([codes >> 4, codes & 0b1111], -1).view(-1)
        numbers = codes.float() if self.table is None else self.table[codes.long()]
        scale = self.scale.repeat_interleave(self.block)[: len(numbers)]
        return numbers.float() * scale

    def quantised(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales of other values, any number of them that fills whole bytes."""
        blocks = -(-len(values) // self.block)
        padded = torch.cat([values, values.new_zeros(blocks * self.block - len(values))]).view(blocks, self.block)
        top = self._largest(padded)
        unit = (padded / torch.where(top > 0, top, 1.0)[:, None]).view(-1)[: len(values)]
        if self.table is None:
            largest = torch.finfo(self.codes.dtype).max
            codes = (unit * largest).to(self.codes.dtype)
            lost = (values > 0) & (values >= 0).all() & (codes.float() == 0)
            codes = torch.where(lost, 1, codes.view(torch.uint8)).to(torch.uint8).view(codes.dtype)
            return codes, top.clamp(min=1e-12) / largest
        found = torch.bucketize(unit, (self.table[:-1] + self.table[1:]) / 2)
        unsigned, first = (self.table >= 0).all(), (self.table <= 0).sum()
        found = torch.where(unsigned & (unit > 0), torch.maximum(found, first), found)
        codes = found.to(torch.uint8)
        if self._packed:
            codes = codes.view(-1, 2)
            codes = (codes[:, 0] << 4) | codes[:, 1]
        return codes, top.to(self.scale.dtype)

    def _largest(self, blocks: torch.Tensor) -> torch.Tensor:
        """The scale of each block. A table may reach further up than down: what has a code keeps it."""
        if self.table is None:
            return blocks.abs().amax(1)
        low, high = self.table[0], self.table[-1]
        return torch.maximum(blocks.amax(1) / high, -blocks.amin(1) / torch.where(low < 0, -low, 1.0)).clamp(min=0)

    def resized(self, values: torch.Tensor) -> dict[int, Any]:
        """For another number of entries: what takes the place of which object, by the old one's id."""
        if self.wrapper is not None and len(values) % self.block:
            return {id(self.wrapper): values.to(self.wrapper.dtype)}  # as its optimizer keeps such parameters
        codes, scale = self.quantised(values)
        if self.wrapper is None:
            return {id(self.codes): codes, id(self.scale): scale}
        names, context = self.wrapper.__tensor_flatten__()
        parts = {name: getattr(self.wrapper, name) for name in names} | {"codes": codes, "scale": scale}
        if self._packed:
            context = [values.shape if isinstance(item, torch.Size) else item for item in context]
        return {id(self.wrapper): type(self.wrapper).__tensor_unflatten__(parts, context)}


def wraps_codes(value: torch.Tensor) -> bool:
    """Whether it is one of torchao's tensors of quantised state."""
    return type(value).__name__ in _TORCHAO and type(value).__module__.split(".")[0] == "torchao"


def codes_of(value: Any) -> Codes:
    """The parts of one of torchao's tensors."""
    return Codes(value.codes, value.scale, getattr(value, "qmap", None), value.block_size, value)


def block_of(entries: int, blocks: int) -> int | None:
    """How many entries a block has that has this many of them; None where that cannot be told."""
    return next((block for block in _BLOCKS if -(-entries // block) == blocks), None)
