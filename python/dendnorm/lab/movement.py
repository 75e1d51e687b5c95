"""How far the neurons of a sparse layer go while it trains: the mechanism that a division by counts is said to have."""

from __future__ import annotations

from typing import Any

import torch

from ..nn.layer import SparseLayer

__all__ = ["Movement"]


class Movement:
    """From its making on, by neuron: the steps and the changes of sign of the weights that act.

    Connections are those of the making; none may come or go until ``ended``.
    """

    @torch.no_grad()
    def __init__(self, layer: SparseLayer) -> None:
        self.layer = layer
        self.row = layer.edges()[0].long()
        self.began = layer.effective_weight().double()

    @torch.no_grad()
    def ended(self) -> dict[str, Any]:
        """Lists of one number for each neuron, None for a neuron without inputs.

        Returns:
            "afferents"; "step", ||w - w0|| / ||w0||; "flips", the share of weights that have changed their sign.
        """
        now = self.layer.effective_weight().double()
        count = self.layer.in_degrees().double()

        def summed(values: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(count).index_add_(0, self.row, values)

        steps = (summed((now - self.began).square()) / summed(self.began.square())).sqrt()
        flips = summed((now * self.began < 0).double()) / count
        return {
            "afferents": self.layer.in_degrees().tolist(),
            "step": _numbers(steps),
            "flips": _numbers(flips),
        }


def _numbers(values: torch.Tensor) -> list[float | None]:
    return [value if value == value else None for value in values.tolist()]
