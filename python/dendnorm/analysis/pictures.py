"""Pictures of sparse layers. Drawn without a display, so that they work on a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._extras import require
from ..nn.linear import SparseLinear
from . import topology as analysis

__all__ = ["distributions", "efferent_maps", "neurons"]

# Distinct for colour-blind readers too (Okabe and Ito), the control in black as in the paper.
COLOURS = {"none": "#000000", "l0": "#0072b2"}
MORE_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES = {"before": "-", "after": "--"}


def save(figure: Any, panels: Any, path: str | Path) -> None:
    """Write a figure, with open frames around its panels."""
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def distributions(model: Any, path: str | Path) -> None:
    """A row for each sparse layer of a model: degrees of its output neurons, of its inputs, and effective weights.

    Args:
        model: a module with at least one ``SparseLinear``.
        path: the picture to write.

    Raises:
        ValueError: there is none.
    """
    figure_module = require("matplotlib.figure", "train")
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, SparseLinear)]
    if not layers:
        raise ValueError(f"model must hold a SparseLinear, got none in {type(model).__name__}")
    figure = figure_module.Figure(figsize=(11, 0.6 + 2.6 * len(layers)), layout="constrained")
    panels = figure.subplots(len(layers), 3, squeeze=False)
    for row, (name, layer) in zip(panels, layers, strict=True):
        for axes, side, label in ((row[0], "in", "afferents of an output"), (row[1], "out", "efferents of an input")):
            counts = analysis.degree_histogram(layer, side).tolist()
            axes.bar(range(len(counts)), counts, width=1.0, color=MORE_COLOURS[0 if side == "in" else 1])
            axes.set(xlabel=f"{label} neuron", ylabel="neurons")
        counts, edges = analysis.weight_histogram(layer)
        row[2].stairs(counts.tolist(), edges.tolist(), fill=True, color=COLOURS["l0"])
        row[2].set(xlabel="effective weight", ylabel="connections")
        row[0].set_title(f"{name or type(layer).__name__}: {layer.nnz:,} connections, {100 * layer.density:.3g} %",
                         loc="left", fontsize=10)  # fmt: skip
    save(figure, panels, path)


def efferent_maps(maps: Mapping[str, Sequence[torch.Tensor]], path: str | Path, titles: Sequence[str] = (),
                  heading: str = "") -> None:  # fmt: skip
    """Efferent connections of each pixel as images in one scale: a row for each name, as in the paper's figure 2A.

    Args:
        maps: by name, images of shape (height, width) such as ``analysis.efferent_map`` gives, for example one for each
            epoch; as many for every name.
        path: the picture to write.
        titles: of the columns.
        heading: of the picture.

    Raises:
        ValueError: no image, or not as many for every name.
    """
    counts = {len(images) for images in maps.values()}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"maps must have as many images for every name, at least one, got {sorted(counts)}")
    (count,) = counts
    figure = require("matplotlib.figure", "train").Figure(
        figsize=(2.3 * count + 1, 2.5 * len(maps) + 0.6), layout="constrained"
    )
    panels = figure.subplots(len(maps), count, squeeze=False)
    top = max(float(image.max()) for images in maps.values() for image in images)
    for row, (name, images) in enumerate(maps.items()):
        for axes, image in zip(panels[row], images, strict=True):
            drawn = axes.imshow(image.cpu().numpy(), vmin=0, vmax=top, cmap=("Blues", "Oranges", "Greens")[row % 3])
            axes.set(xticks=[], yticks=[])
        panels[row][0].set_ylabel(name)
        figure.colorbar(drawn, ax=panels[row].tolist(), label="efferent connections")
    for axes, title in zip(panels[0], titles, strict=False):
        axes.set_title(title)
    figure.suptitle(heading, fontsize=11)
    figure.savefig(path, dpi=120)


def neurons(samples: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, heading: str = "") -> None:
    """Distributions over output neurons: afferents, weights, mean weighted input, as in the paper's figure 2B.

    Args:
        samples: by name, what ``analysis.snapshot`` gives.
        path: the picture to write.
        heading: of the picture.

    Raises:
        ValueError: no sample.
    """
    if not samples:
        raise ValueError("samples must hold at least one snapshot, got none")
    figure = require("matplotlib.figure", "train").Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    names = {"afferents": "afferents of a neuron", "weights": "weight", "weighted_input": "mean weighted input"}
    colours = dict(zip(samples, ("#1f77b4", "#ff7f0e", *MORE_COLOURS) * len(samples), strict=False))
    for axes, (key, label) in zip(panels, names.items(), strict=True):
        values = {name: torch.as_tensor(sample[key], dtype=torch.float64) for name, sample in samples.items()}
        low, high = np.quantile(torch.cat(list(values.values())).numpy(), (0.002, 0.998))
        bins = np.linspace(low, high if high > low else low + 1, 41)
        for name, sample in values.items():
            axes.hist(sample.numpy(), bins, density=True, alpha=0.55, color=colours[name], label=name)
        axes.set(xlabel=label)
    panels[0].set_ylabel("density")
    panels[1].set_yscale("log")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(heading, fontsize=11)
    save(figure, panels, path)
