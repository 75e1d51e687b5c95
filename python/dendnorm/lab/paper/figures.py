"""The paper's figures, in the paper's layout, from what ``runner.run`` has measured. Each function draws one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..._extras import require
from ...analysis import pictures
from ...analysis.style import NORM_COLOURS, PALETTE, STYLES, colours, heading, new_figure, open_frames
from ..curves import PANELS, draw_panel, legend_of_curves
from .panels import finished, marks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "afferents", "efferents", "learning", "orders"]

Results = Mapping[str, Any]


def _heading(results: Results, many: str = "mean of {} trials, one standard deviation") -> str:
    trials = max((entry["trials"] for panel in results["panels"] for entry in panel["summary"].values()), default=0)
    shown = many.format(trials) if trials > 1 else "one trial"
    quick = ", QUICK: too short to reproduce anything" if results["quick"] else ""
    return f"{results['name']}: {results['title']} ({shown}{quick})"


def learning(results: Results) -> Figure:
    """A column for each network: training cost above, test accuracy below, as in figures 1D and 3C to 3F."""
    line = require("matplotlib.lines", "train").Line2D
    measured = results["panels"]
    labels = {norm: entry["label"] for panel in measured for norm, entry in panel["summary"].items()}
    chosen = colours(labels)
    figure = new_figure(max(6.0, 3.1 * len(measured)), 5.6)
    panels = figure.subplots(len(PANELS), len(measured), squeeze=False)
    for column, panel in zip(panels.T, measured, strict=True):
        for axes, quantity in zip(column, PANELS, strict=True):
            draw_panel(axes, panel["summary"], quantity, chosen)
        for norm, accuracy in panel["published"].items():
            if norm in panel["summary"]:
                column[1].axhline(accuracy, color=chosen[norm], linestyle=":", linewidth=1.2)
        column[0].set_title(panel["title"].replace(", ", "\n", 1), fontsize=9)
    for axes in panels[0]:
        axes.set_xlabel("")
    for axes in panels[:, 1:].flat:
        axes.set_ylabel("")
    open_frames(panels.flat)
    dotted = line([], [], color=PALETTE["grey"], linestyle=":", label="published in the paper")
    published = any(norm in panel["summary"] for panel in measured for norm in panel["published"])
    legend_of_curves(figure, labels, chosen, [dotted] * published)
    heading(figure, _heading(results))
    return figure


def efferents(results: Results) -> Figure:
    """Maps of efferent connections per pixel, mean over trials: a row for each norm, a column for each epoch (2A)."""
    maps, titles, labels = {}, [], {}
    for norm, records in finished(results["panels"][0]).items():
        looks = list(zip(*(record["inside"] for record in records), strict=True))
        titles = [f"epoch {same[0]['epoch']}" for same in looks]
        counts = [torch.tensor([look["efferents"] for look in same], dtype=torch.float64) for same in looks]
        maps[norm] = [sample.mean(0).view(28, 28) for sample in counts]
        labels[norm] = records[0]["label"]
    return pictures.efferent_maps(maps, None, titles, _heading(results, "mean of {} trials"), labels)


def afferents(results: Results) -> Figure:
    """Distributions over the hidden neurons of all trials at the last epoch looked at (2B)."""
    by_norm = finished(results["panels"][0])
    samples = {
        norm: {
            key: [value for record in records for value in record["inside"][-1][key]]
            for key in ("afferents", "weights", "weighted_input")
        }
        for norm, records in by_norm.items()
    }
    labels = {norm: records[0]["label"] for norm, records in by_norm.items()}
    return pictures.neurons(samples, None, _heading(results, "the neurons of {} trials"), labels)


# Apart in p, so that equal values do not hide each other, and told by the marker as well.
EXCITABILITIES: dict[bool, dict[str, Any]] = {
    False: {"label": "one excitability for all", "color": NORM_COLOURS["l0"], "marker": "o", "apart": -0.07},
    True: {"label": "one excitability per neuron", "color": NORM_COLOURS["l0-variable"], "marker": "s", "apart": 0.07},
}


def _of_order(summary: Mapping[str, dict[str, Any]], variable: bool, phase: str, epoch: int) -> list[tuple]:
    """(p, mean, standard deviation) of the test accuracy in %, by p."""
    points = []
    for norm, entry in summary.items():
        kind, _, order = norm.partition(":")
        if kind.endswith("-variable") == variable:
            values = entry[phase]["test_accuracy"]
            points.append((int(order or 0), 100 * values["mean"][epoch - 1], 100 * values["std"][epoch - 1]))
    return sorted(points)


def orders(results: Results) -> Figure:
    """Accuracy against p, a row for each of the epochs, before and after rewiring (figure 3G)."""
    (panel,) = results["panels"]
    epochs = marks(panel)
    figure = new_figure(9, 2.1 * len(epochs) + 1)
    panels = figure.subplots(len(epochs), len(STYLES), squeeze=False)
    for row, epoch in zip(panels, epochs, strict=True):
        for axes, phase in zip(row, STYLES, strict=True):
            for variable, style in EXCITABILITIES.items():
                points = _of_order(panel["summary"], variable, phase, epoch)
                if points:
                    p, mean, spread = zip(*points, strict=True)
                    drawn = {key: value for key, value in style.items() if key != "apart"}
                    axes.errorbar([order + style["apart"] for order in p], mean, spread, markersize=4, capsize=2,
                                  linewidth=1.2, **drawn)  # fmt: skip
            axes.set_title(f"epoch {epoch}, {phase} rewiring", fontsize=9)
            axes.xaxis.set_major_locator(require("matplotlib.ticker", "train").MaxNLocator(integer=True))
        row[0].set_ylabel("test accuracy (%)")
    for axes in panels[-1]:
        axes.set_xlabel("p, the order of the norm")
    panels[0][0].legend(frameon=False, fontsize=8)
    open_frames(panels.flat)
    heading(figure, _heading(results))
    return figure


FIGURES: dict[str, Callable[[Results], Figure]] = {
    "learning": learning,
    "efferents": efferents,
    "afferents": afferents,
    "orders": orders,
}
