"""The networks of an experiment: what they are made of, how they start, and how they are rewired."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..nn import norms
from ..nn.linear import SparseLinear
from ..rewiring import grow, schedules
from ..rewiring.set import SET
from . import equal
from .settings import ACTIVATIONS, Settings

__all__ = ["build_network", "rewirer"]

FILTER, POOL = 5, 2  # the paper's convolution (figure 3B)


def build_network(
    image_shape: tuple[int, int, int], classes: int, settings: Settings, norm: str, seed: int,
    device: torch.device | str = "cpu"
) -> nn.Sequential:  # fmt: skip
    """Sparse hidden layers and a dense output layer that is not normalised (the paper, Methods).

    All biases and the output weights are N(0, 1) (``Settings.matched`` has another choice); filters are N(0, 1 / their
    inputs), which keeps sigmoids out of saturation (the paper does not say). A shared excitability is one parameter for
    all hidden layers.
    Networks of one seed start from the same connections and values, whatever their norm.

    Args:
        image_shape: (channels, height, width) of the inputs, which come as rows of their product.

    ``Settings.start`` has another choice, which is ``equal``'s.

    Raises:
        ValueError: images too small for the convolution.
    """
    if settings.start == "equal":
        return equal.build_network(image_shape, classes, settings, norm, seed, device)
    generator = torch.Generator().manual_seed(seed)
    features = math.prod(image_shape)
    layers: list[nn.Module] = []
    if settings.convolution:
        layers, features = _convolution(image_shape, settings, generator, device)
    spread = 0.0 if settings.matched else 1.0  # of biases
    layer_norms = _norms(norm, settings)
    for index, (width, layer_norm) in enumerate(zip(settings.hidden, layer_norms, strict=True)):
        if norm == "none":  # with the gain that draws its values from N(0, 1), as the others'
            afferents = round(settings.epsilon * features * width) / width
            layer_norm = norms.Norm(0, 0, gain=math.sqrt(max(afferents, 1)))
        layer = SparseLinear(
            features, width, density=settings.epsilon, norm=layer_norm, seed=seed * 1000 + index, device=device
        )
        _draw_normal(layer.bias, generator, spread)
        with torch.no_grad():
            layer.weight.mul_(start_std(layer, settings))
        layers += [layer, ACTIVATIONS[settings.activation](width).to(device)]
        if settings.dropout:
            layers.append(nn.Dropout(settings.dropout))
        features = width
    head = nn.Linear(features, classes, device=device)
    _draw_normal(head.weight, generator, features**-0.5 if settings.matched else 1.0)
    _draw_normal(head.bias, generator, spread)
    return nn.Sequential(*layers, head)


def _draw_normal(parameter: nn.Parameter, generator: torch.Generator, std: float = 1.0) -> None:
    with torch.no_grad():
        parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(std))


def _convolution(
    image_shape: tuple[int, int, int], settings: Settings, generator: torch.Generator, device: torch.device | str
) -> tuple[list[nn.Module], int]:
    """A dense convolution with pooling, and how many features come out of it."""
    channels, height, width = image_shape
    if min(height, width) < FILTER + POOL - 1:
        raise ValueError(
            f"convolution needs images of {FILTER + POOL - 1} pixels a side or more, got {height} x {width}"
        )
    filters = nn.Conv2d(channels, settings.convolution, FILTER, device=device)
    _draw_normal(filters.weight, generator, (channels * FILTER**2) ** -0.5)
    _draw_normal(filters.bias, generator)
    # Channels last is several times faster on a CPU; and the largest activation is that of the largest input.
    filters.to(memory_format=torch.channels_last)
    # SReLU has parameters for each unit, ReLU is its form without them.
    pointwise = "relu" if settings.activation == "srelu" else settings.activation
    layers = [nn.Unflatten(1, image_shape), filters, nn.MaxPool2d(POOL), ACTIVATIONS[pointwise](0), nn.Flatten()]
    return layers, settings.convolution * math.prod((size - FILTER + 1) // POOL for size in (height, width))


def _norms(name: str, settings: Settings) -> list[norms.Norm]:
    """The norm of each hidden layer. One that has a parameter starts at s; the control has none."""
    chosen = norms.resolve(name)
    if name == "none":
        return [chosen] * len(settings.hidden)

    def started() -> norms.Norm:
        return norms.Norm(chosen.a, chosen.b, chosen.p, variable=chosen.variable, s=settings.s)

    return [started() for _ in settings.hidden] if chosen.variable else [started()] * len(settings.hidden)


def start_std(layer: SparseLinear, settings: Settings) -> float:
    """Standard deviation of the values that a layer starts with: 1, as in the paper, or see ``Settings.matched``."""
    if not settings.matched or layer.norm.b != 0 or layer.nnz == 0:
        return 1.0
    afferents = layer.nnz / layer.out_features
    factor = settings.s / afferents**layer.norm.a if layer.norm.scales else 1.0
    return math.sqrt(2 / afferents) / abs(factor)


def rewirer(model: nn.Module, optimizer: torch.optim.Optimizer | None, settings: Settings, seed: int) -> SET | None:
    """SET with the settings' share, where new connections come, and their values.

    None for a network without sparse layers, and where nothing is to be rewired.
    """
    if settings.zeta == 0 or not any(isinstance(module, SparseLinear) for module in model.modules()):
        return None
    falls = settings.zeta_schedule == "cosine"
    zeta = schedules.Cosine(settings.zeta, settings.epochs) if falls else settings.zeta
    start = "matched" if settings.matched or settings.start == "equal" else "normal"
    start = start if settings.regrowth == "start" else settings.regrowth
    comes = grow.Gradient(start=start) if settings.grow == "gradient" else grow.Random(start=start)
    return SET(model, optimizer, zeta=zeta, seed=seed, grow=comes)
