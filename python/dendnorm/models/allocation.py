"""Sharing out a number of connections among layers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping

__all__ = ["allocate"]

DISTRIBUTIONS = ("uniform", "er", "erk")


def allocate(
    shapes: Mapping[str, tuple[int, ...]], density: float | None, distribution: str, epsilon: float | None = None
) -> dict[str, int]:
    """The number of connections of each layer; see ``dendnorm.densities``.

    Args:
        shapes: of the weights: (M, N) and what follows, all at least 1.

    Raises:
        TypeError, ValueError: an argument that is not as ``densities`` says.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {list(DISTRIBUTIONS)}, got {distribution!r}")
    for name, shape in shapes.items():
        if len(shape) < 2 or not all(isinstance(size, numbers.Integral) and size >= 1 for size in shape):
            raise ValueError(f"shape of {name!r} must have two or more sizes of at least 1, got {shape}")
    if epsilon is not None:
        if density is not None or distribution == "uniform":
            raise ValueError('epsilon must be given without density, for distribution "er" or "erk"')
        if isinstance(epsilon, bool) or not isinstance(epsilon, numbers.Real) or not 0 < epsilon < math.inf:
            raise ValueError(f"epsilon must be a positive number, got {epsilon!r}")
    elif isinstance(density, bool) or not isinstance(density, numbers.Real):
        raise TypeError(f"density must be a number, got {density!r}")
    elif not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")
    # Where epsilon is given, density plays no part.
    share = 0.0 if density is None else density
    positions = {name: math.prod(shape) for name, shape in shapes.items()}
    share = 0.0 if density is None else float(density)
    if distribution == "uniform":
        return {name: round(share * count) for name, count in positions.items()}
    # Of "er", density * positions = (M + N) * kernel size: a kernel counts as many connections of two units.
    scale = {name: sum(shape) if distribution == "erk" else sum(shape[:2]) * math.prod(shape[2:])
             for name, shape in shapes.items()}  # fmt: skip
    if epsilon is not None:
        return {name: min(round(epsilon * scale[name]), count) for name, count in positions.items()}
    total = round(share * sum(positions.values()))
    return _whole(_capped(scale, positions, total), positions, total)


def _capped(scale: dict[str, int], positions: dict[str, int], total: int) -> dict[str, float]:
    """In proportion to ``scale``, none above its positions, together ``total``."""
    dense: set[str] = set()
    while True:
        others = [name for name in scale if name not in dense]
        left = total - sum(positions[name] for name in dense)
        factor = left / sum(scale[name] for name in others) if others else 0.0
        over = {name for name in others if factor * scale[name] > positions[name]}
        if not over:
            return {name: float(positions[name]) if name in dense else factor * scale[name] for name in scale}
        # The most crowded first, as the factor rises with each that is taken out.
        highest = max(scale[name] / positions[name] for name in over)
        dense |= {name for name in over if scale[name] / positions[name] == highest}


def _whole(shares: dict[str, float], positions: dict[str, int], total: int) -> dict[str, int]:
    """Rounded down, and then up where most was lost, of equals the earlier, until they make ``total``."""
    counts = {name: min(math.floor(share), positions[name]) for name, share in shares.items()}
    order = sorted(shares, key=lambda name: counts[name] - shares[name])
    while (missing := total - sum(counts.values())) > 0:
        for name in [name for name in order if counts[name] < positions[name]][:missing]:
            counts[name] += 1
    return counts
