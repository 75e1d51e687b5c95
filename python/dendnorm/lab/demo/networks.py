"""The networks of the demonstration: equal width and equal start, dense or sparse, as the library makes them."""

from __future__ import annotations

import math

import torch
from torch import nn

from ...nn.linear import SparseLinear
from ..settings import ACTIVATIONS, Settings

__all__ = ["NETWORKS", "build_network"]

NETWORKS = {"dense": "dense", "none": "sparse", "l0": "sparse, dendritic normalisation"}  # the words of pictures


def build_network(
    image_shape: tuple[int, int, int],
    classes: int,
    settings: Settings,
    kind: str,
    seed: int,
    device: torch.device | str = "cpu",
) -> nn.Sequential:
    """Hidden layers of one kind and a dense output layer.

    All weights start so that they act as N(0, 1 / n), n the mean number of inputs of a neuron, which is a fresh
    ``SparseLinear``'s own choice, and all biases are 0. Sparse networks of one seed start from the same connections.

    Args:
        kind: one of ``NETWORKS``: "dense", or the norm of sparse layers.
    """
    generator = torch.Generator().manual_seed(seed)
    features = math.prod(image_shape)
    layers: list[nn.Module] = []
    for index, width in enumerate(settings.hidden):
        if kind == "dense":
            layers.append(_dense(features, width, generator, device))
        else:
            own = seed * 1000 + index
            layers.append(SparseLinear(features, width, density=settings.epsilon, norm=kind, seed=own, device=device))
        layers.append(ACTIVATIONS[settings.activation](width).to(device))
        features = width
    return nn.Sequential(*layers, _dense(features, classes, generator, device))


def _dense(inputs: int, outputs: int, generator: torch.Generator, device: torch.device | str) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device=device)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator).mul_(inputs**-0.5))
        layer.bias.zero_()
    return layer
