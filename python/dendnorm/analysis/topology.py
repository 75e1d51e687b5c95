"""What is inside a sparse layer: who is connected, how strongly, what arrives (the paper's figure 2), what changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..nn.conv import SparseConv
from ..nn.layer import SparseLayer
from ..nn.pattern import Pattern

__all__ = [
    "TopologyChange",
    "degree_histogram",
    "efferent_map",
    "first_sparse",
    "log_rewiring",
    "mean_weighted_input",
    "snapshot",
    "topology_change",
    "weight_histogram",
]


def efferent_map(layer: SparseLayer, image_shape: Sequence[int]) -> torch.Tensor:
    """Number of efferent connections of each input, laid out as the image that the inputs are (figure 2A).

    Args:
        layer: whose inputs are pixels. Of a convolution each input is a channel.
        image_shape: sizes whose product is the number of inputs.

    Returns:
        int64, of shape ``image_shape``.

    Raises:
        ValueError: another number of pixels.
    """
    degrees = layer.out_degrees()
    if math.prod(image_shape) != len(degrees):
        raise ValueError(f"image_shape must have {len(degrees)} pixels, got {tuple(image_shape)}")
    return degrees.view(*image_shape).long()


@torch.no_grad()
def mean_weighted_input(layer: SparseLayer, inputs: torch.Tensor, batch: int = 1000) -> torch.Tensor:
    """What arrives at each neuron through its connections, without the bias: the mean of (w x)_i over the inputs.

    Of a convolution: at each filter, the mean over inputs and positions.

    Args:
        inputs: (examples, in_features), or (examples, in_channels, *) of a convolution; at least one example.
        batch: examples computed at a time.

    Returns:
        float64 (out_features,): figure 2B's third quantity.

    Raises:
        ValueError: inputs of another shape.
    """
    width, dims, shape = layer.in_features, 2, f"(examples, {layer.in_features})"
    if isinstance(layer, SparseConv):
        width, dims, shape = layer.in_channels, 2 + len(layer.kernel_size), f"(examples, {layer.in_channels}, *)"
    if inputs.ndim != dims or inputs.shape[1] != width or len(inputs) == 0:
        raise ValueError(f"inputs must have shape {shape}, got {tuple(inputs.shape)}")
    total = torch.zeros(layer.out_features, dtype=torch.float64, device=inputs.device)
    count = 0
    for rows in inputs.split(batch):
        outputs = layer(rows).transpose(0, 1).flatten(1)
        total += outputs.sum(1, dtype=torch.float64)
        count += outputs.shape[1]
    mean = total / count
    return mean if layer.bias is None else mean - layer.bias


def first_sparse(model: nn.Sequential) -> tuple[nn.Module, SparseLayer]:
    """What a sequence has before its first sparse layer (nothing: the identity), and that layer.

    Raises:
        ValueError: there is none.
    """
    for index, module in enumerate(model):
        if isinstance(module, SparseLayer):
            return model[:index], module
    raise ValueError("model must hold a SparseLinear, got none")


@torch.no_grad()
def snapshot(layer: SparseLayer, inputs: torch.Tensor) -> dict[str, Any]:
    """The quantities of figure 2 as lists, which JSON can hold.

    Returns:
        "efferents" (in_features), "afferents" (out_features), "weights" (nnz; effective, in the order of ``edges()``)
        and "weighted_input" (out_features).

    Raises:
        ValueError: as ``mean_weighted_input``.
    """
    return {
        "efferents": layer.out_degrees().tolist(),
        "afferents": layer.in_degrees().tolist(),
        "weights": layer.effective_weight().tolist(),
        "weighted_input": mean_weighted_input(layer, inputs).tolist(),
    }


def degree_histogram(layer: SparseLayer, side: str = "in") -> torch.Tensor:
    """How many neurons have how many connections: entry d counts those with d.

    Args:
        side: "in", the afferents of the output neurons; "out", the efferents of the input neurons.

    Returns:
        int64 (largest degree + 1,), on the layer's device.

    Raises:
        ValueError: another side.
    """
    if side not in ("in", "out"):
        raise ValueError(f'side must be "in" or "out", got {side!r}')
    return torch.bincount(layer.in_degrees() if side == "in" else layer.out_degrees())


@torch.no_grad()
def weight_histogram(
    layer: SparseLayer, bins: int = 50, limits: tuple[float, float] | None = None, effective: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """How the weights of the connections are distributed, over bins of equal width.

    Args:
        bins: how many, at least 1.
        limits: lowest and highest edge; weights outside are not counted. None: those of the weights, or (0, 1) where
            there are none; half a unit to either side where all are equal.
        effective: the effective weights w; False: the raw values v.

    Returns:
        counts int64 (bins,) and edges float64 (bins + 1,), on the CPU. A weight on an edge is in the bin above it, on
        the last edge in the last bin.

    Raises:
        ValueError: bins, limits or a weight that is not finite.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be an int of at least 1, got {bins!r}")
    if limits is not None and not (math.isfinite(limits[0]) and math.isfinite(limits[1]) and limits[0] < limits[1]):
        raise ValueError(f"limits must be two ascending finite numbers, got {limits!r}")
    weights = (layer.effective_weight() if effective else layer.weight).detach().cpu().double().numpy()
    if not np.isfinite(weights).all():
        raise ValueError("weights must be finite, got nan or infinite ones")
    counts, edges = np.histogram(weights, bins, limits)
    return torch.from_numpy(counts).long(), torch.from_numpy(edges)


@dataclass(frozen=True)
class TopologyChange:
    """How two patterns of one layer differ.

    Attributes:
        before, after: their numbers of connections.
        shared: how many are in both.
    """

    before: int
    after: int
    shared: int

    @property
    def removed(self) -> int:
        """How many connections are only in the earlier one."""
        return self.before - self.shared

    @property
    def grown(self) -> int:
        """How many connections are only in the later one."""
        return self.after - self.shared

    @property
    def changed(self) -> float:
        """Share of the earlier one's connections that are gone; 0 where it had none."""
        return self.removed / self.before if self.before else 0.0

    @property
    def jaccard(self) -> float:
        """Shared connections for each that is in either; 1 where both are empty."""
        union = self.before + self.after - self.shared
        return self.shared / union if union else 1.0


def topology_change(before: SparseLayer | Pattern, after: SparseLayer | Pattern) -> TopologyChange:
    """What changed from one pattern to another; O(nnz log nnz) and without an array of all positions.

    Rewiring writes into a layer's own tensors: keep ``layer.pattern.clone()`` to compare with later.

    Raises:
        ValueError: patterns of different sizes.
    """
    first, second = (part.pattern if isinstance(part, SparseLayer) else part for part in (before, after))
    sizes = [(pattern.out_features, pattern.in_features) for pattern in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"patterns must have one size (out_features, in_features), got {sizes[0]} and {sizes[1]}")
    keys = [_keys(pattern.edges(), pattern.out_features).to(second.perm.device) for pattern in (first, second)]
    return TopologyChange(first.nnz, second.nnz, int(torch.isin(*keys, assume_unique=True).sum()))


def _keys(edges: tuple[torch.Tensor, torch.Tensor], rows: int) -> torch.Tensor:
    return edges[1] * rows + edges[0]


@torch.no_grad()
def log_rewiring(writer: Any, report: Iterable[Any], step: int, model: nn.Module | None = None) -> None:
    """Write what a rewiring did to TensorBoard, or to anything with its ``add_scalar`` and ``add_histogram``.

    For each layer, under ``rewiring/NAME/``: ``replaced``, the share k / nnz of the connections that went, and
    ``changed``, the share that is elsewhere afterwards (a position may be emptied and taken again). With ``model`` also
    the distributions ``in_degree``, ``out_degree`` and ``weight`` (effective) of every layer reported.

    Args:
        writer: for example a ``torch.utils.tensorboard.SummaryWriter``.
        report: what ``step()`` of the rewirer returned.
        step: of training, the axis of the curves.
        model: the one that was rewired.
    """
    for layer in report:
        name = f"rewiring/{layer.name or 'layer'}"
        rows = 1 + max((int(rows.max()) for rows, _ in (layer.removed, layer.grown) if len(rows)), default=0)
        again = torch.isin(_keys(layer.grown, rows), _keys(layer.removed, rows), assume_unique=True)
        count = max(layer.nnz, 1)
        writer.add_scalar(f"{name}/replaced", layer.k / count, step)
        writer.add_scalar(f"{name}/changed", (layer.k - int(again.sum())) / count, step)
        if model is not None:
            module: Any = model.get_submodule(layer.name)
            writer.add_histogram(f"{name}/in_degree", module.in_degrees().cpu(), step)
            writer.add_histogram(f"{name}/out_degree", module.out_degrees().cpu(), step)
            writer.add_histogram(f"{name}/weight", module.effective_weight().cpu(), step)
