"""The least time that a machine's loads and multiply-adds allow, from what benchmarks/roofline measured on it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .shape import Shape

__all__ = ["Roofline"]


@dataclass(frozen=True)
class Roofline:
    """Load rates measured by benchmarks/roofline: one activation load per multiply-add bounds a sparse product."""

    threads: int
    sizes: tuple[float, ...]
    rates: tuple[float, ...]  # GB/s of all threads together
    fma_gflops: float

    @classmethod
    def read(cls, path: str | Path) -> Roofline:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            load = content["load"]
            return cls(
                int(content["threads"]),
                tuple(float(entry["bytes"]) for entry in load),
                tuple(float(entry["gb_per_s"]) for entry in load),
                float(content["fma_gflops"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"roofline must be a file that benchmarks/roofline wrote, got {path} ({error!r})"
            ) from None

    def rate(self, size: float) -> float:
        """GB/s from a buffer of `size` bytes, between the measured sizes on a logarithmic scale."""
        if size <= self.sizes[0]:
            return self.rates[0]
        for (low, high), (slow, fast) in zip(pairwise(self.sizes), pairwise(self.rates), strict=True):
            if size <= high:
                share = math.log(size / low) / math.log(high / low)
                return slow + (fast - slow) * share
        return self.rates[-1]

    def floor_ms(self, shape: Shape) -> tuple[float, float]:
        """The least time of the forward pass and of the backward pass that loads dY once, fp32, tiles of 64 samples."""
        tile = min(64, shape.batch)
        loaded = 4.0 * shape.nnz * shape.batch
        forward = max(loaded / self.rate(4 * shape.inputs * tile), 2 * shape.nnz * shape.batch / self.fma_gflops)
        backward = max(loaded / self.rate(4 * shape.outputs * tile), 4 * shape.nnz * shape.batch / self.fma_gflops)
        return forward * 1e-6, backward * 1e-6
