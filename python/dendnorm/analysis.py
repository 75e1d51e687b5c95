"""What is inside a sparse layer: who is connected, how strongly, and what arrives (the paper's figure 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .layers import SparseLinear

__all__ = ["efferent_map", "first_sparse", "mean_weighted_input", "snapshot"]


def efferent_map(layer: SparseLinear, image_shape: Sequence[int]) -> torch.Tensor:
    """Number of efferent connections of each input, laid out as the image that the inputs are (figure 2A).

    Args:
        layer: whose inputs are pixels.
        image_shape: sizes whose product is ``layer.in_features``.

    Returns:
        int64, of shape ``image_shape``.

    Raises:
        ValueError: another number of pixels.
    """
    if math.prod(image_shape) != layer.in_features:
        raise ValueError(f"image_shape must have {layer.in_features} pixels, got {tuple(image_shape)}")
    return layer.out_degrees().view(*image_shape).long()


@torch.no_grad()
def mean_weighted_input(layer: SparseLinear, inputs: torch.Tensor, batch: int = 1000) -> torch.Tensor:
    """What arrives at each neuron through its connections, without the bias: the mean of (w x)_i over the inputs.

    Args:
        inputs: (examples, in_features), at least one example.
        batch: examples computed at a time.

    Returns:
        float64 (out_features,): figure 2B's third quantity.

    Raises:
        ValueError: inputs of another shape.
    """
    if inputs.ndim != 2 or inputs.shape[1] != layer.in_features or len(inputs) == 0:
        raise ValueError(f"inputs must have shape (examples, {layer.in_features}), got {tuple(inputs.shape)}")
    total = torch.zeros(layer.out_features, dtype=torch.float64, device=inputs.device)
    for rows in inputs.split(batch):
        total += layer(rows).sum(0, dtype=torch.float64)
    mean = total / len(inputs)
    return mean if layer.bias is None else mean - layer.bias


def first_sparse(model: nn.Sequential) -> tuple[nn.Sequential, SparseLinear]:
    """What a sequence has before its first sparse layer (nothing: the identity), and that layer.

    Raises:
        ValueError: there is none.
    """
    for index, module in enumerate(model):
        if isinstance(module, SparseLinear):
            return model[:index], module
    raise ValueError("model must hold a SparseLinear, got none")


@torch.no_grad()
def snapshot(layer: SparseLinear, inputs: torch.Tensor) -> dict[str, Any]:
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
