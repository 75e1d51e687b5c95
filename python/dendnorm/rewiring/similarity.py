"""Cosine similarity of the activations of two units, for all pairs in blocks or for the connected ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ..nn.layer import SparseLayer
from ..nn.pattern import Pattern

__all__ = ["Similarity", "total"]


def total(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of at least one tensor, from the first to the last."""
    first, *rest = tensors
    return sum(rest, start=first)


class Similarity:
    """cos(x_j, y_i) = sum_b x_bj y_bi / (||x_j|| ||y_i||) over the observed samples b; 0 where a unit was silent.

    Of a convolution, b runs over samples and positions, x_j is what tap j sees there and y_i what filter i gives.

    J. Pieterse and D. C. Mocanu, "Evolving and understanding sparse deep neural networks using cosine similarity",
    2019.

    Args:
        layer: whose pairs they are.
        pairs: what was observed of its inputs and outputs, batch by batch, on one device.
        activation: what the network applies to the layer's outputs; None: nothing.
        absolute: take |cos|.
        reduce: sums a tensor over ranks, in place.
    """

    def __init__(
        self,
        layer: SparseLayer,
        pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
        activation: Callable[[torch.Tensor], torch.Tensor] | None,
        absolute: bool,
        reduce: Callable[[torch.Tensor], object] | None,
    ) -> None:
        self._absolute = absolute
        self._reduce = reduce if reduce is not None else lambda tensor: None
        self._pairs = [(x, y if activation is None else activation(y)) for x, y in pairs]
        self._layer = layer
        self._inputs = self._inverse(layer._energies(x) for x, _ in self._pairs)  # (N, groups of rows)
        self._outputs = self._inverse(y.transpose(0, 1).flatten(1).square().sum(1) for _, y in self._pairs)
        self._rows = layer.out_features // self._inputs.shape[1]  # of a group

    def _inverse(self, squares: Iterable[torch.Tensor]) -> torch.Tensor:
        square = total(squares)
        self._reduce(square)
        return torch.where(square > 0, square, 1.0).rsqrt()  # of a silent unit every product is 0, too

    def of_columns(self, start: int, stop: int) -> torch.Tensor:
        """For inputs [start, stop) and every output: (stop - start, M)."""
        products = total(self._layer._products(x, y, start, stop) for x, y in self._pairs)
        self._reduce(products)
        inputs = self._inputs[start:stop].repeat_interleave(self._rows, 1)
        return self._finish(products * inputs * self._outputs)

    def of_connections(self, pattern: Pattern) -> torch.Tensor:
        """For each connection of the layer's pattern, on the device of the pairs: (nnz,)."""
        products = total(self._layer._sampled(x, y, pattern) for x, y in self._pairs)
        self._reduce(products)
        row, col = pattern.edges()
        return self._finish(products * self._inputs[col, row // self._rows] * self._outputs[row])

    def _finish(self, cosine: torch.Tensor) -> torch.Tensor:
        return cosine.abs() if self._absolute else cosine
