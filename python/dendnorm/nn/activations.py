"""Activations with parameters that published sparse networks use and PyTorch does not have."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["SReLU"]


class SReLU(nn.Module):
    """S-shaped rectified linear unit: three straight pieces, with four trained parameters for each unit.

        y = t_r + a_r (x - t_r)   where x >= t_r
        y = x                     between
        y = t_l + a_l (x - t_l)   where x <= t_l

    It begins as a leaky ReLU of slope 0.2: t_l = 0, a_l = 0.2, t_r = 1, a_r = 1. The published controls of sparse
    evolutionary training use it. Where training has moved t_l past t_r, all between them is taken for t_r.

    Source: X. Jin et al, "Deep learning with S-shaped rectified linear activation units", AAAI 2016, Eq 1.

    Args:
        features: size of the last dimension of the input.
        device, dtype: of the parameters ``t_l``, ``a_l``, ``t_r`` and ``a_r``, each (features,).

    Raises:
        ValueError: ``features`` is not positive.

    Shape:
        input and output (..., features).
    """

    t_l: nn.Parameter
    a_l: nn.Parameter
    t_r: nn.Parameter
    a_r: nn.Parameter

    def __init__(
        self, features: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        self.features = features
        for name in ("t_l", "a_l", "t_r", "a_r"):
            setattr(self, name, nn.Parameter(torch.empty(features, device=device, dtype=dtype)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for parameter, value in ((self.t_l, 0.0), (self.a_l, 0.2), (self.t_r, 1.0), (self.a_r, 1.0)):
            parameter.fill_(value)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        above = self.a_r * torch.relu(input - self.t_r)
        below = self.a_l * torch.relu(self.t_l - input)
        return torch.clamp(input, self.t_l, self.t_r) + above - below

    def extra_repr(self) -> str:
        return f"features={self.features}"
