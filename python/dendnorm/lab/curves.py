"""The picture of a comparison: training cost and test accuracy, epoch by epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._extras import require
from ..analysis import pictures

__all__ = ["curves"]


def curves(results: dict[str, Any], summary: dict[str, dict[str, Any]], title: str, path: str | Path) -> None:
    """Training cost and test accuracy against epochs: mean over trials, shaded by one standard deviation."""
    figure_module = require("matplotlib.figure", "train")
    lines_module = require("matplotlib.lines", "train")
    ticker = require("matplotlib.ticker", "train")
    figure = figure_module.Figure(figsize=(10, 4.6), layout="constrained")
    cost, accuracy = figure.subplots(1, 2)
    spare = iter(pictures.MORE_COLOURS * len(summary))
    handles = []
    for norm, entry in summary.items():
        colour = pictures.COLOURS.get(norm) or next(spare)
        handles.append(lines_module.Line2D([], [], color=colour, linewidth=2, label=entry["label"]))
        for axes, quantity, factor in ((cost, "train_cost", 1), (accuracy, "test_accuracy", 100)):
            for phase, style in pictures.STYLES.items():
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
    trials = sorted({entry["trials"] for entry in summary.values()})
    counted = f"{trials[0]}" if len(trials) == 1 else f"{trials[0]} to {trials[-1]}"
    note = ", interrupted" if results["interrupted"] else ""
    shading = f"mean of {counted} trials, shaded: one standard deviation" if trials[-1] > 1 else "one trial"
    figure.suptitle(f"{title}\n{shading}{note}", fontsize=11)
    figure.savefig(path, dpi=150)
