"""Which connections come, and with which values: rules that choose k of the positions that are then empty.

Any object with ``looks_at``, ``positions`` and ``values`` is such a rule.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch

from ..ops import library as _ops
from .observing import ACTIVATIONS, GRADIENTS, GROWS, Reduce, Turn, strongest_empty
from .similarity import Similarity, total
from .values import check_start, fresh_values

__all__ = ["Cosine", "Gradient", "Grow", "Random", "resolve"]

_BLOCK = 1 << 22


@runtime_checkable
class Grow(Protocol):
    """A rule for what comes.

    Attributes:
        looks_at: what must have been observed: any of "activations" and "gradients".
    """

    looks_at: tuple[str, ...]

    def positions(self, turn: Turn, ccol_indices: torch.Tensor, row_indices: torch.Tensor) -> torch.Tensor:
        """Where connections come, given the pattern that is left: its column view, int32, on ``turn.device``.

        Columns are input neurons, or the taps of a convolution: those of the pattern.

        Returns:
            Keys ``col * out_features + row`` of ``turn.k`` distinct empty positions, ascending: int64 (k,).
        """
        ...

    def values(self, turn: Turn) -> torch.Tensor:
        """The values v of the new connections, in the order of the keys: (k,), of the weight's dtype."""
        ...


class _Values:
    """New values: "zero"; "matched", with the spread that the layer has; or "normal", from N(0, 1), as the paper."""

    start: str | None

    def __post_init__(self) -> None:
        if self.start is not None:
            check_start(self.start)
        block = getattr(self, "block", 1)
        if isinstance(block, bool) or not isinstance(block, numbers.Integral) or block < 1:
            raise ValueError(f"block must be an int of at least 1, got {block!r}")

    def values(self, turn: Turn) -> torch.Tensor:
        # Where b is not 0, a neuron whose values are all 0 has no gradient.
        start = self.start or ("zero" if turn.layer.norm.b == 0 else "matched")
        return fresh_values(turn.layer, turn.k, turn.seed, turn.step, turn.index, turn.device, start)


@dataclass(frozen=True)
class Random(_Values):
    """Uniformly at random, as in SET; a function of (seed, step, layer) and the pattern, on every device and rank.

    Args:
        start: of the new values: "zero", so that the effective weights of the others stay but for the norm; "matched",
            normal with the spread that the layer's values have, so that a rewiring keeps its scale; or "normal", from
            N(0, 1), as in the paper. None: "zero", which was measured to lose less and to end at a lower loss; but
            "matched" for norms with b != 0, with which a neuron that had lost all connections would never learn again.
    """

    start: str | None = None
    looks_at: ClassVar[tuple[str, ...]] = ()

    def positions(self, turn: Turn, ccol_indices: torch.Tensor, row_indices: torch.Tensor) -> torch.Tensor:
        rows = turn.layer.out_features
        return _ops.empty_positions(
            ccol_indices, row_indices, rows, turn.k, turn.seed, turn.step, turn.index, sound=True
        )


@dataclass(frozen=True)
class Gradient(_Values):
    """Where the gradient of the loss in the effective weights is largest in magnitude, as RigL grows; new values are 0.

    |dC/dW|, dC/dW = sum_b y'_b x_b^T with x the layer's inputs and y' the gradient in its outputs, over the batches of
    the observed step (of a convolution over samples and positions, x being what the taps see); of equals the earlier in
    column order. It is formed in blocks of columns and never whole. It is that of W and not of v: so a neuron without
    connections, whose v would have none, can win some. A batch whose gradient is not finite is left out, as a
    ``GradScaler`` leaves out its step.

    Needs ``rewirer.observe()`` or ``every=``. Source: U. Evci et al, "Rigging the lottery: making all tickets
    winners", ICML 2020, algorithm 1.

    Args:
        start: "zero", as there, "matched" or "normal". Under a norm with b != 0 a neuron that would have nothing but
            zeros gets "matched" ones.
        reduce: sums a tensor over all ranks in place, for example ``torch.distributed.all_reduce``. A distributed run
            of whole layers needs it (one of sharded layers does so by itself): every rank sees its own share of the
            batch, and without the sum their patterns drift apart. Whole blocks travel, N M numbers for each layer and
            rewiring.
        block: entries of dC/dW to hold at a time; at least one column is.
    """

    start: str | None = "zero"
    reduce: Reduce | None = None
    block: int = _BLOCK
    looks_at: ClassVar[tuple[str, ...]] = (GRADIENTS,)

    def positions(self, turn: Turn, ccol_indices: torch.Tensor, row_indices: torch.Tensor) -> torch.Tensor:
        pairs = [(x, torch.where(dy.isfinite().all(), dy, torch.zeros_like(dy))) for x, dy in turn.pairs(GRADIENTS)]
        reduce = turn.reduce(self.reduce)

        def magnitude(start: int, stop: int) -> torch.Tensor:
            gradient = total(turn.layer._products(x, dy, start, stop) for x, dy in pairs)
            if reduce is not None:
                reduce(gradient)
            return gradient.abs()

        return strongest_empty(turn, ccol_indices, row_indices, magnitude, self.block)


@dataclass(frozen=True)
class Cosine(_Values):
    """Where the activations of the two units are most similar over the observed samples; of equals the earlier.

    Needs ``rewirer.observe()`` or ``every=``. Source: J. Pieterse and D. C. Mocanu, "Evolving and understanding sparse
    deep neural networks using cosine similarity", 2019.

    Args:
        activation: what the network applies to the layer's outputs, for example ``torch.relu``; None: nothing.
        absolute: compare |cos| instead of cos.
        start: of the new values, as for ``Random``.
        reduce: sums a tensor over all ranks in place; as for ``Gradient``.
        block: similarities to hold at a time; at least one column's are.
    """

    activation: Callable[[torch.Tensor], torch.Tensor] | None = None
    absolute: bool = False
    start: str | None = None
    reduce: Reduce | None = None
    block: int = _BLOCK
    looks_at: ClassVar[tuple[str, ...]] = (ACTIVATIONS,)

    def positions(self, turn: Turn, ccol_indices: torch.Tensor, row_indices: torch.Tensor) -> torch.Tensor:
        similarity = Similarity(
            turn.layer, turn.pairs(ACTIVATIONS), self.activation, self.absolute, turn.reduce(self.reduce)
        )
        return strongest_empty(turn, ccol_indices, row_indices, similarity.of_columns, self.block)


GROWS.declare(Grow, random=Random, gradient=Gradient, cosine=Cosine)


def resolve(rule: Grow | str) -> Grow:
    """A rule from its name, or the same object.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a rule nor a string.
    """
    return GROWS.resolve(rule)
