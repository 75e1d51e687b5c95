"""Pictures of training runs. Drawn without a display, so that they work on a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import analysis
from ._extras import require
from .layers import SparseLinear

__all__ = ["bench", "curves", "distributions", "efferent_maps", "neurons"]

# Distinct for colour-blind readers too (Okabe and Ito), the control in black as in the paper.
COLOURS = {"none": "#000000", "l0": "#0072b2"}
MORE_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES = {"before": "-", "after": "--"}


def save(figure: Any, panels: Any, path: str | Path) -> None:
    """Write a figure, with open frames around its panels."""
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def curves(results: dict[str, Any], summary: dict[str, dict[str, Any]], path: str | Path) -> None:
    """Training cost and test accuracy against epochs: mean over trials, shaded by one standard deviation."""
    figure_module = require("matplotlib.figure", "train")
    lines_module = require("matplotlib.lines", "train")
    ticker = require("matplotlib.ticker", "train")
    figure = figure_module.Figure(figsize=(10, 4.6), layout="constrained")
    cost, accuracy = figure.subplots(1, 2)
    spare = iter(MORE_COLOURS * len(summary))
    handles = []
    for norm, entry in summary.items():
        colour = COLOURS.get(norm) or next(spare)
        handles.append(lines_module.Line2D([], [], color=colour, linewidth=2, label=entry["label"]))
        for axes, quantity, factor in ((cost, "train_cost", 1), (accuracy, "test_accuracy", 100)):
            for phase, style in STYLES.items():
                mean = [factor * value for value in entry[phase][quantity]["mean"]]
                spread = [factor * value for value in entry[phase][quantity]["std"]]
                low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
                axes.plot(entry["epochs"], mean, style, color=colour, linewidth=1.8, marker="o", markersize=3)
                axes.fill_between(entry["epochs"], low, high, color=colour, alpha=0.13, linewidth=0)
    grey = "#666666"
    handles.append(lines_module.Line2D([], [], color=grey, linestyle="-", label="before rewiring"))
    handles.append(lines_module.Line2D([], [], color=grey, linestyle="--", label="after rewiring"))
    cost.set(title="Training cost (lower is better)", xlabel="epoch", ylabel="mean log-likelihood cost")
    accuracy.set(title="Test accuracy (higher is better)", xlabel="epoch", ylabel="test accuracy (%)")
    cost.set_ylim(bottom=0)
    for axes in (cost, accuracy):
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    from .training import describe

    trials = sorted({entry["trials"] for entry in summary.values()})
    counted = f"{trials[0]}" if len(trials) == 1 else f"{trials[0]} to {trials[-1]}"
    note = ", interrupted" if results["interrupted"] else ""
    shading = f"mean of {counted} trials, shaded: one standard deviation" if trials[-1] > 1 else "one trial"
    figure.suptitle(f"{describe(results)}\n{shading}{note}", fontsize=11)
    figure.savefig(path, dpi=150)


BENCH_COLOURS = {
    "dense": "#000000",
    "masked": "#888888",
    "torch.sparse": "#E69F00",
    "SparseProp": "#CC3311",
    "dendnorm": "#0072B2",
    "dendnorm, l0": "#56B4E9",
}


def bench(results: dict[str, Any], path: str | Path) -> None:
    """Time of a training step against density, with the crossover to dense; cost of a connection against nnz and batch.

    Args:
        results: what `dendnorm.bench.run` returns, with sweeps.
        path: the picture to write.
    """
    figure_module = require("matplotlib.figure", "bench")
    figure = figure_module.Figure(figsize=(13, 4.8), layout="constrained")
    panels = figure.subplots(1, 3)
    sweeps = results["sweeps"]
    base = sweeps["density"][0]["shape"]
    layer = f"{base['in']} → {base['out']}"
    drawn: dict[str, Any] = {}

    def draw(axes: Any, sweep: list[dict[str, Any]], key: Any, value: Any) -> None:
        for name in sweep[0]["contenders"] if sweep else ():
            points = [(key(e), value(e, e["contenders"][name]["median_ms"])) for e in sweep
                      if "median_ms" in e["contenders"][name]]  # fmt: skip
            if points:
                width = 2 if name == "dendnorm" else 1.3
                style = {"color": BENCH_COLOURS.get(name), "linewidth": width, "marker": "o", "markersize": 3.5}
                (line,) = axes.plot(*zip(*points, strict=True), label=name, **style)
                drawn.setdefault(name, line)

    draw(panels[0], sweeps["density"], lambda e: 100 * e["shape"]["density"], lambda e, ms: ms)
    panels[0].set(title=f"{layer}, batch {base['batch']}", xlabel="connections that exist (%)", ylabel="ms per step")
    found = results.get("crossover")
    if found is not None:
        panels[0].axvline(100 * found, color="#0072B2", linestyle=":", linewidth=1)
        panels[0].annotate(f"dense wins from {found:.0%} on", (100 * found, 1), xycoords=("data", "axes fraction"),
                           xytext=(-4, -12), textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    draw(panels[1], sweeps.get("nnz", []), lambda e: e["nnz"], lambda e, ms: ms * 1e6 / e["nnz"])
    panels[1].set(title="1 % density, batch 128", xlabel="connections", ylabel="ns per step and connection")
    draw(
        panels[2], sweeps.get("batch", []), lambda e: e["shape"]["batch"], lambda e, ms: ms * 1e3 / e["shape"]["batch"]
    )
    panels[2].set(title=f"{layer}, {100 * results['shapes'][0]['shape']['density']:g} % density",
                  xlabel="batch", ylabel="µs per step and sample")  # fmt: skip
    for axes in panels:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(alpha=0.25, which="major")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=list(drawn.values()), loc="outside lower center", ncols=len(drawn), frameon=False)
    facts = results["machine"]
    figure.suptitle(
        f"One training step (forward, dX, dV, dbias); lower is better\n{facts['processor']},"
        f" {facts['threads']} threads, {facts['instruction set']}, torch {facts['torch']}",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)


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
