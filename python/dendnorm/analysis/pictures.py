"""Pictures of sparse layers. Each function returns the figure that it has drawn, and writes it if told where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._extras import require
from ..nn.layer import SparseLayer
from . import topology as analysis
from .style import PALETTE, colours, new_figure, open_frames, save
from .style import heading as draw_heading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["distributions", "efferent_maps", "neurons"]


def _written(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        save(figure, path)
    return figure


def distributions(model: Any, path: str | Path | None = None) -> Figure:
    """A row for each sparse layer of a model: degrees of its output neurons, of its inputs, and effective weights.

    Args:
        model: a module with at least one ``SparseLinear``.
        path: the picture to write; None: none.

    Returns:
        the matplotlib figure.

    Raises:
        ValueError: there is none.
    """
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, SparseLayer)]
    if not layers:
        raise ValueError(f"model must hold a SparseLinear, got none in {type(model).__name__}")
    figure = new_figure(11, 0.6 + 2.6 * len(layers))
    panels = figure.subplots(len(layers), 3, squeeze=False)
    sides = (("in", "afferents of an output neuron", "vermillion"), ("out", "efferents of an input neuron", "orange"))
    for row, (name, layer) in zip(panels, layers, strict=True):
        for axes, (side, label, colour) in zip(row, sides, strict=False):
            neurons_of = analysis.degree_histogram(layer, side).tolist()
            axes.bar(range(len(neurons_of)), neurons_of, width=1.0, color=PALETTE[colour])
            axes.set(xlabel=label, ylabel="neurons")
        counts, edges = analysis.weight_histogram(layer)
        row[2].stairs(counts.tolist(), edges.tolist(), fill=True, color=PALETTE["blue"])
        row[2].set(xlabel="effective weight", ylabel="connections")
        row[0].set_title(f"{name or type(layer).__name__}: {layer.nnz:,} connections, {100 * layer.density:.3g} %",
                         loc="left", fontsize=10)  # fmt: skip
    open_frames(panels.flat)
    return _written(figure, path)


def efferent_maps(maps: Mapping[str, Sequence[torch.Tensor]], path: str | Path | None = None,
                  titles: Sequence[str] = (), heading: str = "", labels: Mapping[str, str] | None = None
                  ) -> Figure:  # fmt: skip
    """Efferent connections of each pixel as images in one scale: a row for each name, as in the paper's figure 2A.

    Args:
        maps: by name, images of shape (height, width) such as ``analysis.efferent_map`` gives, for example one for each
            epoch; as many for every name. A name that is a norm's ("l0") gives the row that norm's colour.
        path: the picture to write; None: none.
        titles: of the columns.
        heading: of the picture.
        labels: by name, what is written instead of it.

    Returns:
        the matplotlib figure.

    Raises:
        ValueError: no image, or not as many for every name.
    """
    counts = {len(images) for images in maps.values()}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"maps must have as many images for every name, at least one, got {sorted(counts)}")
    (count,) = counts
    from_list = require("matplotlib.colors", "train").LinearSegmentedColormap.from_list
    figure = new_figure(2.3 * count + 1.2, 2.5 * len(maps) + 0.6)
    panels = figure.subplots(len(maps), count, squeeze=False)
    top = max(float(image.max()) for images in maps.values() for image in images)
    chosen = colours(maps)
    for row, (name, images) in zip(panels, maps.items(), strict=True):
        shades = from_list(name, ["#ffffff", chosen[name]])
        for axes, image in zip(row, images, strict=True):
            drawn = axes.imshow(image.cpu().numpy(), vmin=0, vmax=top, cmap=shades)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel((labels or {}).get(name, name))
        figure.colorbar(drawn, ax=row.tolist(), label="efferent connections")
    for axes, title in zip(panels[0], titles, strict=False):
        axes.set_title(title)
    draw_heading(figure, heading)
    return _written(figure, path)


def neurons(samples: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path | None = None, heading: str = "",
            labels: Mapping[str, str] | None = None) -> Figure:  # fmt: skip
    """Distributions over output neurons: afferents, weights, mean weighted input, as in the paper's figure 2B.

    Args:
        samples: by name, what ``analysis.snapshot`` gives. A name that is a norm's ("l0") gives that norm's colour.
        path: the picture to write; None: none.
        heading: of the picture.
        labels: by name, what is written instead of it.

    Returns:
        the matplotlib figure.

    Raises:
        ValueError: no sample.
    """
    if not samples:
        raise ValueError("samples must hold at least one snapshot, got none")
    figure = new_figure(11, 3.6)
    panels = figure.subplots(1, 3)
    quantities = {"afferents": "afferents of a neuron", "weights": "weight", "weighted_input": "mean weighted input"}
    chosen = colours(samples)
    for axes, (key, label) in zip(panels, quantities.items(), strict=True):
        values = {name: torch.as_tensor(sample[key], dtype=torch.float64) for name, sample in samples.items()}
        low, high = np.quantile(torch.cat(list(values.values())).numpy(), (0.002, 0.998))
        bins = np.linspace(low, high if high > low else low + 1, 41)
        for name, sample in values.items():
            axes.hist(sample.numpy(), bins, density=True, alpha=0.55, color=chosen[name],
                      label=(labels or {}).get(name, name))  # fmt: skip
        axes.set(xlabel=label)
    panels[0].set_ylabel("density")
    panels[1].set_yscale("log")
    panels[0].legend(frameon=False, fontsize=8)
    draw_heading(figure, heading)
    open_frames(panels)
    return _written(figure, path)
