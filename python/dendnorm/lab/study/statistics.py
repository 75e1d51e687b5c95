"""Differences of paired trials: their interval, their p, and p corrected for the number of comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..._extras import require

__all__ = ["Difference", "holm", "paired"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of the pairs' differences, the ends of its interval, and p; n pairs. NaN where too few tell."""

    n: int
    mean: float
    low: float
    high: float
    p: float


def paired(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
    """First less second, by Student's t of the differences, two-sided.

    Differences that are all equal have an interval of no width, and p is 1 if they are 0 and else 0.

    Raises:
        ValueError: samples of different lengths.
    """
    differences = [one - other for one, other in zip(first, second, strict=True)]
    n = len(differences)
    if n == 0:
        return Difference(0, math.nan, math.nan, math.nan, math.nan)
    mean = statistics.fmean(differences)
    if n == 1:
        return Difference(1, mean, math.nan, math.nan, math.nan)
    t = require("scipy.stats", "train").t
    error = statistics.stdev(differences) / math.sqrt(n)
    reach = float(t.ppf((1 + confidence) / 2, n - 1)) * error
    p = float(mean == 0) if error == 0 else 2 * float(t.sf(abs(mean) / error, n - 1))
    return Difference(n, mean, mean - reach, mean + reach, p)


def holm(p: Sequence[float]) -> list[float]:
    """Each p corrected for their number, so that the chance of any false finding stays below what one is read by.

    NaN stays, and is no comparison. Source: S. Holm, "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 6, 1979.
    """
    tested = sorted((value, index) for index, value in enumerate(p) if not math.isnan(value))
    corrected, worst = list(p), 0.0
    for rank, (value, index) in enumerate(tested):
        worst = max(worst, min(1.0, (len(tested) - rank) * value))
        corrected[index] = worst
    return corrected
