"""Numbers of inputs that vary over neurons: alike, lognormal or as a power law, for the same number of connections."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..nn import patterns
from ..nn.pattern import Pattern

__all__ = ["DEGREES", "pattern", "shared_out"]

DEVIATION = 1.5  # of the logarithm
EXPONENT = 2.5  # of the power law


def _lognormal(rows: int, draw: torch.Generator) -> torch.Tensor:
    return (DEVIATION * torch.randn(rows, generator=draw, dtype=torch.float64)).exp()


def _power_law(rows: int, draw: torch.Generator) -> torch.Tensor:
    """(rank + 1)^(-1 / (exponent - 1)) at random ranks, as in ``patterns.scale_free``, for the neurons' side alone."""
    return (torch.randperm(rows, generator=draw).double() + 1) ** (-1 / (EXPONENT - 1))


# What each neuron's number of inputs is in proportion to; None: connections are drawn alike.
DEGREES: dict[str, Callable[[int, torch.Generator], torch.Tensor] | None] = {
    "uniform": None,
    "lognormal": _lognormal,
    "power-law": _power_law,
}


def shared_out(shares: torch.Tensor, total: int, most: int) -> torch.Tensor:
    """Whole numbers in proportion to shares, as far as they lie between 1 and ``most``, with exactly this total.

    Where the total is below one for each, the least is 0.

    Args:
        shares: (rows,), float64, positive.
        total: at most rows times ``most``.
    """
    least = 1 if total >= len(shares) else 0
    low, high = 0.0, float(total * most) / shares.min().item()
    for _ in range(200):  # the total is a growing function of the factor
        factor = (low + high) / 2
        fits = (factor * shares).floor().clamp(least, most).sum() <= total
        low, high = (factor, high) if fits else (low, factor)
    exact = low * shares
    counts = exact.floor().clamp(least, most)
    left = total - int(counts.sum())
    rest = torch.where(counts < most, exact - counts, -torch.inf)  # the nearest to one more
    counts[rest.argsort(descending=True, stable=True)[:left]] += 1
    return counts.long()


def pattern(kind: str, inputs: int, outputs: int, density: float, seed: int) -> Pattern:
    """``round(density * inputs * outputs)`` connections, each neuron's inputs alike, their numbers as ``kind``."""
    shares = DEGREES[kind]
    if shares is None:
        return patterns.uniform(inputs, outputs, density, seed=seed, device="cpu")
    draw = torch.Generator().manual_seed(seed)
    counts = shared_out(shares(outputs, draw), round(density * inputs * outputs), inputs)
    ranks = torch.rand(outputs, inputs, generator=draw).argsort(1).argsort(1)
    return Pattern.from_mask(ranks < counts[:, None])
