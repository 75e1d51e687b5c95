"""Which connections go: rules that give each connection an importance; the k least important are excised.

Of equals the earlier in the layer's order goes. Any object with ``looks_at`` and ``importance`` is such a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch

from .observing import ACTIVATIONS, DROPS, Reduce, Turn
from .similarity import Similarity

__all__ = ["Cosine", "Drop", "Gradient", "Magnitude", "Sensitivity", "SignSplit", "resolve"]


@runtime_checkable
class Drop(Protocol):
    """A rule for what goes.

    Attributes:
        looks_at: what must have been observed: any of "activations" and "gradients".
    """

    looks_at: tuple[str, ...]

    def importance(self, turn: Turn) -> torch.Tensor:
        """Of each connection, in the order of ``turn.layer.weight``: (nnz,), float32 or float64, no NaN."""
        ...


@dataclass(frozen=True)
class Magnitude:
    """The smallest effective weights |w| go: SET as Bird and Cuntz use it, and the rule of RigL."""

    looks_at: ClassVar[tuple[str, ...]] = ()
    reads_gradient: ClassVar[bool] = False

    def importance(self, turn: Turn) -> torch.Tensor:
        return turn.layer.effective_weight().detach().abs()


@dataclass(frozen=True)
class SignSplit:
    """The smallest positive and the largest negative effective weights go, the fraction zeta of each.

    round(zeta n_+) of the n_+ weights w >= 0 (a weight of 0 is the smallest of them), half to even, and as many of the
    others as make k = round(zeta nnz) in all: their share is zeta to rounding, too.

    Source: D. C. Mocanu et al, "Scalable training of artificial neural networks with adaptive sparse connectivity
    inspired by network science", Nature Communications 9, 2018, algorithm 1.
    """

    looks_at: ClassVar[tuple[str, ...]] = ()
    reads_gradient: ClassVar[bool] = False

    def importance(self, turn: Turn) -> torch.Tensor:
        weight = turn.layer.effective_weight().detach()
        magnitude, positive = weight.abs(), weight >= 0
        order = magnitude.argsort(stable=True)
        count = positive.sum()
        highest = (turn.zeta * count.double()).round().long()
        highest = torch.minimum(torch.maximum(highest, turn.k - (len(weight) - count)), count.clamp(max=turn.k))
        first = positive[order]
        rank = torch.where(first, first.cumsum(0), (~first).cumsum(0)) - 1  # among those of its sign
        goes = rank < torch.where(first, highest, turn.k - highest)
        importance = torch.empty_like(weight, dtype=torch.float64)
        importance[order] = (rank + torch.where(goes, 0, len(weight))).double()
        return torch.where(weight.isnan(), torch.nan, importance)


@dataclass(frozen=True)
class Gradient:
    """The smallest gradients |dC/dv| go, those in ``layer.weight.grad``: the connections that learn least."""

    looks_at: ClassVar[tuple[str, ...]] = ()

    def importance(self, turn: Turn) -> torch.Tensor:
        return _gradient(turn).abs()


@dataclass(frozen=True)
class Sensitivity:
    """The smallest |v dC/dv| go, with the gradient in ``layer.weight.grad``.

    To first order it is how much the loss changes when v becomes 0. Source: N. Lee et al, "SNIP: single-shot network
    pruning based on connection sensitivity", ICLR 2019, equation 4.
    """

    looks_at: ClassVar[tuple[str, ...]] = ()

    def importance(self, turn: Turn) -> torch.Tensor:
        return (turn.layer.weight.detach() * _gradient(turn)).abs()


def _gradient(turn: Turn) -> torch.Tensor:
    gradient = turn.layer.weight.grad
    if gradient is None:
        raise ValueError(
            "must have a gradient in weight.grad for a rule that looks at it, got None; step() before zero_grad()"
        )
    return gradient.detach()


@dataclass(frozen=True)
class Cosine:
    """The connections go whose two units have the least similar activations over the observed samples.

    Needs ``rewirer.observe()``. Source: J. Pieterse and D. C. Mocanu, "Evolving and understanding sparse deep neural
    networks using cosine similarity", 2019.

    Args:
        activation: what the network applies to the layer's outputs, for example ``torch.relu``; None: nothing.
        absolute: compare |cos| instead of cos.
        reduce: sums a tensor over all ranks in place, for example ``torch.distributed.all_reduce``: needed where the
            ranks of a distributed run see different samples, or their patterns drift apart.
    """

    activation: Callable[[torch.Tensor], torch.Tensor] | None = None
    absolute: bool = False
    reduce: Reduce | None = None
    looks_at: ClassVar[tuple[str, ...]] = (ACTIVATIONS,)
    reads_gradient: ClassVar[bool] = False

    def importance(self, turn: Turn) -> torch.Tensor:
        similarity = Similarity(
            turn.layer, turn.pairs(ACTIVATIONS), self.activation, self.absolute, turn.reduce(self.reduce)
        )
        return similarity.of_connections(turn.layer.pattern.to(turn.device))


DROPS.declare(Drop, magnitude=Magnitude, sign=SignSplit, gradient=Gradient, sensitivity=Sensitivity, cosine=Cosine)


def resolve(rule: Drop | str) -> Drop:
    """A rule from its name, or the same object.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a rule nor a string.
    """
    return DROPS.resolve(rule)
