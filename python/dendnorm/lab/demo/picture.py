"""The picture of the demonstration: accuracy against epochs, connections and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..._extras import require
from ...analysis.style import PALETTE, colours, heading, legend_below, new_figure, open_frames
from ..curves import draw_panel
from .networks import NETWORKS
from .tables import readings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["picture"]

MARKERS = "osD^"  # of the sizes
FIRST = 6.0  # points below the lowest final accuracy from which curves are shown


def _draw_costs(axes: Axes, results: Mapping[str, Any], cost: Callable[[Mapping[str, Any], str], float],
                chosen: Mapping[str, str]) -> None:  # fmt: skip
    """Final test accuracy of every network against a cost, with one standard deviation over trials."""
    for size, marker in zip(results["sizes"], MARKERS, strict=False):
        for kind, entry in size["summary"].items():
            accuracy = entry["before"]["test_accuracy"]
            axes.errorbar(cost(size, kind), 100 * accuracy["mean"][-1], 100 * accuracy["std"][-1], color=chosen[kind],
                          marker=marker, markersize=8, capsize=3, linestyle="none", alpha=0.85)  # fmt: skip
    axes.set_xscale("log")
    ticker = require("matplotlib.ticker", "train")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, position: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(alpha=0.25)


def picture(results: Mapping[str, Any]) -> Figure:
    """Test accuracy against epochs, of the last size that was trained; and against connections and time, of all."""
    figure = new_figure(12, 5)
    panels = figure.subplots(1, 3)
    chosen = colours(NETWORKS)
    size = [size for size in results["sizes"] if size["summary"]][-1]
    draw_panel(panels[0], size["summary"], "test_accuracy", chosen, phases=("before",))
    lowest = min(100 * entry["before"]["test_accuracy"]["mean"][-1] for entry in size["summary"].values())
    bottom, top = panels[0].get_ylim()
    panels[0].set_ylim(max(lowest - FIRST, bottom), min(top, 100.3))
    panels[0].set(title=f"{size['network']}, epoch by epoch", ylabel="test accuracy before rewiring (%)")
    _draw_costs(panels[1], results, lambda size, kind: size["costs"][kind]["connections"], chosen)
    panels[1].set(title="Accuracy against connections", xlabel="connections of the hidden layers (left is cheaper)")
    _draw_costs(panels[2], results, lambda size, kind: size["summary"][kind]["seconds"], chosen)
    panels[2].set(title="Accuracy against time", xlabel="seconds per epoch (left is faster)")
    for axes in panels[1:]:
        axes.set_ylabel("final test accuracy (%)")
    open_frames(panels)
    line = require("matplotlib.lines", "train").Line2D
    handles = [line([], [], color=chosen[kind], linewidth=3, label=label) for kind, label in NETWORKS.items()]
    handles += [
        line([], [], color=PALETTE["grey"], marker=marker, markersize=8, linestyle="none",
             label=f"{size['network']}, {size['settings']['epsilon']:.0%}")
        for size, marker in zip(results["sizes"], MARKERS, strict=False)
    ]  # fmt: skip
    legend_below(figure, handles)
    note = ", interrupted" if results["interrupted"] else ""
    head = f"{size['settings']['data']}: each network at its own learning rate, chosen on held-out images{note}"
    heading(figure, "\n".join([head, *readings(results)]), left=True)
    return figure
