"""Networks that begin as the same function, whatever their hidden layers are: what ``Settings.start`` calls equal.

A kind is a norm's name or one of ``KINDS``. Sparse networks of one seed have the same connections and the same weights
that act; where a neuron has the mean number of inputs, its values are these weights, so that a learning rate means the
same to all of them at the first step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from ..nn.linear import SparseLinear
from .degrees import pattern
from .settings import ACTIVATIONS, Settings

__all__ = ["KINDS", "MeanCount", "build_network", "narrowed"]

KINDS = {
    "l0-mean": "the mean number of inputs in place of each neuron's own",
    "layer_norm": "no norm of weights, and PyTorch's LayerNorm on what arrives at the neurons",
    "dense": "all connections",
    "dense-narrow": "all connections, in layers so narrow that parameters are as many as the sparse network's",
}
Device = torch.device | str


class MeanCount(nn.Module):
    """After a sparse layer without norm and bias: (s / n) x + bias with one n for all neurons, s from n on."""

    def __init__(self, width: int, mean: float, device: Device = "cpu") -> None:
        super().__init__()
        self.mean = mean
        self.s = nn.Parameter(torch.tensor(float(mean), device=device))
        self.bias = nn.Parameter(torch.zeros(width, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.bias, x, self.s / self.mean)


def build_network(
    image_shape: tuple[int, int, int], classes: int, settings: Settings, kind: str, seed: int, device: Device = "cpu"
) -> nn.Sequential:
    """Hidden layers of one kind and a dense output layer; arguments as ``networks.build_network``.

    Raises:
        ValueError: a norm that is not there, or settings that this start does not have.
    """
    if settings.convolution:
        raise ValueError(f"convolution must be 0 where start is equal, got {settings.convolution}")
    generator = torch.Generator().manual_seed(seed)
    features = math.prod(image_shape)
    widths = (
        narrowed(features, settings.hidden, classes, settings.epsilon) if kind == "dense-narrow" else settings.hidden
    )
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        if kind.startswith("dense"):
            layers.append(_dense(features, width, settings.scale * math.sqrt(2 / features), generator, device))
        else:
            layers += _sparse(features, width, settings, kind, seed * 1000 + index, device)
        layers.append(ACTIVATIONS[settings.activation](width).to(device))
        if settings.dropout:
            layers.append(nn.Dropout(settings.dropout))
        features = width
    return nn.Sequential(*layers, _dense(features, classes, features**-0.5, generator, device))


def narrowed(features: int, hidden: Sequence[int], classes: int, density: float) -> tuple[int, ...]:
    """Widths in proportion to ``hidden`` with which a dense network has nearest to the sparse one's parameters."""

    def parameters(widths: Sequence[int], share: float) -> int:
        sizes = (features, *widths)
        sparse = sum(round(share * a * b) for a, b in itertools.pairwise(sizes))
        return sparse + sum(widths) + (sizes[-1] + 1) * classes

    wanted, widest = parameters(hidden, density), max(hidden)
    tried = [tuple(max(1, round(width * part / widest)) for width in hidden) for part in range(1, widest + 1)]
    return min(tried, key=lambda widths: abs(parameters(widths, 1.0) - wanted))


def _sparse(inputs: int, width: int, settings: Settings, kind: str, seed: int, device: Device) -> list[nn.Module]:
    """A sparse layer whose weights act as N(0, scale^2 2 / n_i), and what follows it."""
    edges = pattern(settings.degrees, inputs, width, settings.epsilon, seed)
    crow, columns = edges.crow_indices, edges.col_indices
    counts = crow.diff()
    spread = settings.scale * (2 / counts.clamp(min=1)).sqrt().repeat_interleave(counts)
    drawn = torch.randn(edges.nnz, generator=torch.Generator().manual_seed(seed)) * spread
    bias = None if kind == "l0-mean" else torch.zeros(width)
    norm = "none" if kind in KINDS else kind
    layer = SparseLinear.from_csr(crow, columns, drawn, shape=(width, inputs), bias=bias, norm=norm).to(device)
    after = {
        "l0-mean": lambda: [MeanCount(width, edges.nnz / width, device)],
        "layer_norm": lambda: [nn.LayerNorm(width, device=device)],
    }
    return [layer, *after.get(kind, list)()]


def _dense(inputs: int, outputs: int, spread: float, generator: torch.Generator, device: Device) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device=device)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator).mul_(spread))
        layer.bias.zero_()
    return layer
