"""Random arguments of a layer, for the tests against the oracle and for the count of such cases (tests/reliability)."""

from __future__ import annotations

import numpy as np
import oracle
import torch

LAYOUTS = ("contiguous", "transposed", "sliced", "expanded", "columns")


def random_mask(rng: np.random.Generator, rows: int, cols: int, density: float) -> np.ndarray:
    mask = rng.random((rows, cols)) < density
    if rows and rng.random() < 0.4:
        mask[rng.integers(rows)] = False
    if cols and rng.random() < 0.2:
        mask[:, rng.integers(cols)] = False
    return mask


def random_values(rng, pattern: oracle.Pattern, dtype: torch.dtype, zero_rows: bool = True) -> torch.Tensor:
    values = rng.standard_normal(pattern.nnz)
    row, _ = pattern.rows_cols
    if zero_rows and pattern.nnz and rng.random() < 0.4:
        values[row == rng.choice(row)] = 0.0
    if pattern.nnz and rng.random() < 0.3:
        values[rng.integers(pattern.nnz)] = 0.0
    return torch.tensor(values, dtype=dtype)


def excitability_of(rng, kind: str | None, rows: int, dtype: torch.dtype) -> torch.Tensor | None:
    if kind is None:
        return None
    if kind == "own":
        return torch.tensor(rng.standard_normal(rows) * 5, dtype=dtype)
    value = torch.tensor(rng.standard_normal() * 5, dtype=dtype)
    return value if rng.random() < 0.5 else value.reshape(1)


def laid_out(rng, shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> torch.Tensor:
    """Random values of a shape, in memory as `layout` says."""

    def normal(*sizes: int) -> torch.Tensor:
        return torch.tensor(rng.standard_normal(sizes), dtype=dtype)

    if layout == "transposed":
        return normal(*shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    if layout == "sliced":
        return normal(*(2 * size + 1 for size in shape))[tuple(slice(1, None, 2) for _ in shape)]
    if layout == "expanded":
        return normal(*((1,) * (len(shape) - 1)), shape[-1]).expand(shape)
    if layout == "columns":
        return normal(*shape[:-1], shape[-1] + 3)[..., 2 : 2 + shape[-1]]
    return normal(*shape)


def leading_shape(rng, rank: int, batch: int) -> tuple[int, ...]:
    """`rank - 1` sizes with about `batch` entries together."""
    if rank == 1:
        return ()
    sizes = [batch]
    while len(sizes) < rank - 1:
        split = int(rng.integers(1, 4))
        sizes = [split, -(-sizes[0] // split), *sizes[1:]]
    return tuple(sizes)
