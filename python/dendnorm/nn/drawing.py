"""The edges of drawn patterns, in memory of their own number: no N M positions are looked at one by one.

Everything is on the CPU and decided by a generator alone.
"""

from __future__ import annotations

import math

import torch

__all__ = ["boxes", "power_law"]

SPARE = 8.0  # standard deviations by which more connections are drawn than are kept
WIDER = 1.05  # ratio of the ranks at the two ends of a bin


def boxes(
    places: torch.Tensor, sizes: tuple[int, ...], reach: float, channels: int = 1, most: int | None = None,
    draw: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """For each place the pixels at most ``reach`` away in every dimension, or ``most`` of them.

    Args:
        places: (rows, dimensions), float64, in pixels.
        sizes: of the image, whose pixels are numbered channel by channel.

    Returns:
        row and pixel of each edge, int64; rows ascending.
    """
    limits = torch.tensor(sizes, device="cpu") - 1
    low = (places - reach - 1e-9).ceil().long().clamp_(min=0)
    wide = (places + reach + 1e-9).floor().long().minimum(limits) - low + 1
    counts = wide.prod(1) * channels
    row, left = _all_below(counts) if most is None else _some_below(counts, most, draw)
    pixel, stride = torch.zeros_like(left), 1
    for axis in reversed(range(len(sizes))):
        side = wide[row, axis]
        pixel += (low[row, axis] + left % side) * stride
        left, stride = left // side, stride * sizes[axis]
    return row, pixel + left * stride  # what is left is the channel


def _all_below(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row i with each number below ``counts[i]``."""
    row = torch.repeat_interleave(counts)
    return row, torch.arange(len(row), device="cpu") - (counts.cumsum(0) - counts)[row]


def _some_below(counts: torch.Tensor, most: int, draw: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Row i with ``most`` different numbers below ``counts[i]``, or all where there are fewer; int64, ascending."""
    wanted = counts.clamp(max=most)
    base = int(counts.max()) if len(counts) else 1
    # Where more than half are wanted they are drawn out of all, elsewhere one by one until they are different.
    row, number = _all_below(torch.where(2 * wanted >= counts, counts, 0))
    order = torch.rand(len(row), generator=draw, dtype=torch.float64, device="cpu").argsort()
    order = order[row[order].argsort(stable=True)]
    row, number = row[order], number[order]
    first = torch.searchsorted(row, row)
    keys = (row * base + number)[torch.arange(len(row), device="cpu") - first < wanted[row]]
    while True:
        missing = wanted - torch.bincount(keys // base, minlength=len(counts))
        row = torch.repeat_interleave(missing)
        if not len(row):
            return keys // base, keys % base
        number = (torch.rand(len(row), generator=draw, dtype=torch.float64, device="cpu") * counts[row]).long()
        keys = torch.cat((keys, row * base + number)).unique()


def power_law(
    rows: int, cols: int, count: int, power: float, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` different positions, drawn one after the other in proportion to a weight of the row times one of the
    column: (rank + 1)^-power, the ranks at random.

    A position comes at a time that is exponential with its weight for a rate, and the first ``count`` are taken, which
    is the same. Up to a time at which somewhat more have come, those that have mostly come are looked at one by one,
    and of the others the number of comings is Poisson's: both are about as many as come.

    Returns:
        row and column of each, int64.
    """
    ranks = [torch.randperm(size, generator=draw, device="cpu") for size in (rows, cols)]
    enough = count + SPARE * math.sqrt(count) + SPARE**2
    while 2 * enough < rows * cols:
        end = _time_of(enough, rows, cols, power)
        row, col, time = _come(rows, cols, power, end, draw)
        if len(time) >= count:
            break
        enough *= 2
    else:
        row, col = _all_below(torch.full((rows,), cols, device="cpu"))
        time = _exponential(len(row), draw) + power * ((row + 1).double().log() + (col + 1).double().log())
    first = time.topk(count, largest=False).indices
    return ranks[0][row[first]], ranks[1][col[first]]


def _exponential(size: int, draw: torch.Generator) -> torch.Tensor:
    """Logarithms of exponential times of rate 1."""
    uniform = torch.rand(size, generator=draw, dtype=torch.float64, device="cpu").clamp_(min=1e-300)
    return uniform.log_().neg_().log_()


def _come(
    rows: int, cols: int, power: float, end: float, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ranks of row and column of every position that has come by a time, once, and when; times are logarithms."""
    of_rows, of_cols = (-power * torch.arange(1, size + 1, dtype=torch.float64, device="cpu").log()
                        for size in (rows, cols))  # fmt: skip
    # Of each row the columns below `often` are looked at one by one: they have come once or more on average.
    often = torch.searchsorted(of_cols.neg(), of_rows + end)
    row, col = _all_below(often)
    time = _exponential(len(row), draw) - of_rows[row] - of_cols[col]
    # The weights from each column on, summed from the small end.
    rest = torch.cat((of_cols.flip(0).logcumsumexp(0).flip(0), of_cols.new_tensor([-math.inf])))
    comings = torch.poisson((of_rows + end + rest[often]).exp(), generator=draw).long()
    seldom = torch.repeat_interleave(comings)
    share = torch.rand(len(seldom), generator=draw, dtype=torch.float64, device="cpu").clamp_(min=1e-300).log_()
    later = torch.searchsorted(rest.flip(0), share + rest[often][seldom])
    at = (cols - later).clamp(min=0).maximum(often[seldom])
    when = end + torch.rand(len(seldom), generator=draw, dtype=torch.float64, device="cpu").clamp_(min=1e-300).log_()
    row, col, time = torch.cat((row, seldom)), torch.cat((col, at)), torch.cat((time, when))
    order = time.argsort()
    order = order[(row * cols + col)[order].argsort(stable=True)]
    row, col, time = row[order], col[order], time[order]
    keys = row * cols + col
    kept = torch.ones_like(keys, dtype=torch.bool)
    kept[1:] = keys[1:] != keys[:-1]
    kept &= time <= end
    return row[kept], col[kept], time[kept]


def _time_of(count: float, rows: int, cols: int, power: float) -> float:
    """The logarithm of a time by which at least ``count`` positions have come on average, and not many times more."""
    (many, lows), (more, others) = (_bins(size, power) for size in (rows, cols))
    positions, weights = many[:, None] * more, lows[:, None] + others
    early = math.log(count / (rows * cols))
    late = 4.0 - float(weights.min())
    for _ in range(64):
        middle = (early + late) / 2
        mean = float((positions * -(-(weights + middle).exp()).expm1()).sum())
        early, late = (early, middle) if mean >= count else (middle, late)
    return late


def _bins(size: int, power: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks in bins that grow with them: how many, and the logarithm of the smallest weight."""
    ends = [0]
    while ends[-1] < size:
        ends.append(min(max(ends[-1] + 1, int(ends[-1] * WIDER)), size))
    bounds = torch.tensor(ends, dtype=torch.float64, device="cpu")
    return bounds.diff(), -power * bounds[1:].log()
