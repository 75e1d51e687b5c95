"""Training cost and test accuracy, epoch by epoch: the panels of every comparison, and the picture of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._extras import require
from ..analysis.style import PALETTE, STYLES, colours, heading, legend_below, new_figure, open_frames

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PANELS", "curves", "draw_panel", "legend_of_curves"]

PANELS = {"train_cost": ("training cost", 1), "test_accuracy": ("test accuracy (%)", 100)}  # label, and scale


def draw_panel(axes: Axes, summary: Mapping[str, dict[str, Any]], quantity: str, chosen: Mapping[str, str],
               phases: Sequence[str] = tuple(STYLES)) -> None:  # fmt: skip
    """Mean over trials against epochs for every norm and phase of rewiring, shaded by one standard deviation.

    Args:
        quantity: a key of ``PANELS``.
        chosen: the colour of each norm.
    """
    label, factor = PANELS[quantity]
    for norm, entry in summary.items():
        for phase in phases:
            mean, spread = ([factor * value for value in entry[phase][quantity][part]] for part in ("mean", "std"))
            low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
            axes.plot(entry["epochs"], mean, STYLES[phase], color=chosen[norm], linewidth=1.5,
                      marker="o" if len(mean) < 3 else None, markersize=3)  # fmt: skip
            axes.fill_between(entry["epochs"], low, high, color=chosen[norm], alpha=0.13, linewidth=0)
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(require("matplotlib.ticker", "train").MaxNLocator(integer=True))
    axes.grid(alpha=0.25)


def legend_of_curves(figure: Figure, labels: Mapping[str, str], chosen: Mapping[str, str],
                     more: Sequence[Any] = ()) -> None:  # fmt: skip
    """The colour of each norm, the line style of each phase, and more handles that have their labels."""
    line = require("matplotlib.lines", "train").Line2D
    handles = [line([], [], color=chosen[norm], linewidth=2, label=label) for norm, label in labels.items()]
    handles += [line([], [], color=PALETTE["grey"], linestyle=style, label=f"{phase} rewiring")
                for phase, style in STYLES.items()]  # fmt: skip
    legend_below(figure, [*handles, *more])


def curves(results: Mapping[str, Any], summary: Mapping[str, dict[str, Any]], title: str) -> Figure:
    """Training cost and test accuracy against epochs."""
    figure = new_figure(10, 4.6)
    panels = figure.subplots(1, 2)
    chosen = colours(summary)
    for axes, quantity in zip(panels, PANELS, strict=True):
        draw_panel(axes, summary, quantity, chosen)
    panels[0].set_title("Training cost (lower is better)")
    panels[0].set_ylim(bottom=0)
    panels[1].set_title("Test accuracy (higher is better)")
    open_frames(panels)
    legend_of_curves(figure, {norm: entry["label"] for norm, entry in summary.items()}, chosen)
    trials = sorted({entry["trials"] for entry in summary.values()})
    counted = f"{trials[0]}" if len(trials) == 1 else f"{trials[0]} to {trials[-1]}"
    note = ", interrupted" if results["interrupted"] else ""
    shading = f"mean of {counted} trials, shaded: one standard deviation" if trials[-1] > 1 else "one trial"
    heading(figure, f"{title}\n{shading}{note}")
    return figure
