"""Cosine similarity of the activations of two units, for all pairs in blocks or for the connected ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ..nn.pattern import Pattern
from ..ops import library as _ops

__all__ = ["Similarity", "total"]


def total(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of at least one tensor, from the first to the last."""
    first, *rest = tensors
    return sum(rest, start=first)


class Similarity:
    """cos(x_j, y_i) = sum_b x_bj y_bi / (||x_j|| ||y_i||) over the observed samples b; 0 where a unit was silent.

    J. Pieterse and D. C. Mocanu, "Evolving and understanding sparse deep neural networks using cosine similarity",
    2019.

    Args:
        pairs: what was observed: inputs (B, N) and outputs (B, M) of the layer, batch by batch, on one device.
        activation: what the network applies to the layer's outputs; None: nothing.
        absolute: take |cos|.
        reduce: sums a tensor over ranks, in place.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
        activation: Callable[[torch.Tensor], torch.Tensor] | None,
        absolute: bool,
        reduce: Callable[[torch.Tensor], object] | None,
    ) -> None:
        self._absolute = absolute
        self._reduce = reduce if reduce is not None else lambda tensor: None
        self._pairs = [(x, y if activation is None else activation(y)) for x, y in pairs]
        self._inverse = [self._norms([pair[side] for pair in self._pairs]) for side in (0, 1)]

    def _norms(self, parts: list[torch.Tensor]) -> torch.Tensor:
        square = total(part.square().sum(0) for part in parts)
        self._reduce(square)
        return torch.where(square > 0, square, 1.0).rsqrt()  # of a silent unit every product is 0, too

    def of_columns(self, start: int, stop: int) -> torch.Tensor:
        """For inputs [start, stop) and every output: (stop - start, M)."""
        products = total(x[:, start:stop].T @ y for x, y in self._pairs)
        self._reduce(products)
        return self._finish(products * self._inverse[0][start:stop, None] * self._inverse[1])

    def of_connections(self, pattern: Pattern) -> torch.Tensor:
        """For each connection of the layer's pattern, on the device of the pairs: (nnz,)."""
        products = total(_ops.sampled_product(y, x, *pattern) for x, y in self._pairs)
        self._reduce(products)
        row, col = pattern.edges()
        return self._finish(products * self._inverse[0][col] * self._inverse[1][row])

    def _finish(self, cosine: torch.Tensor) -> torch.Tensor:
        return cosine.abs() if self._absolute else cosine
