"""The pictures of studies: differences with their intervals, the mechanism, accuracy against what it costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..._extras import require
from ...analysis.style import PALETTE, heading, legend_below, new_figure, open_frames
from .catalogue import LAST
from .collect import measured
from .mechanism import QUANTITIES, by_degree
from .tables import SHOWN, finished, moment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "differences", "fan_in", "pareto"]

Results = Mapping[str, Any]

# By kind, as everywhere, and by what else tells arms apart.
COLOURS = {
    "none": PALETTE["black"],
    "l0": PALETTE["blue"],
    "l0-mean": PALETTE["sky blue"],
    "weight_norm": PALETTE["bluish green"],
    "layer_norm": PALETTE["reddish purple"],
    "dense": PALETTE["grey"],
    "dense-narrow": PALETTE["orange"],
}
OWN_COLOURS = {"static sparse": PALETTE["reddish purple"], "RigL": PALETTE["vermillion"]}
MARKERS = {"dense": "D", "dense-narrow": "s"}


def colour(name: str, arm: Mapping[str, Any]) -> str:
    return OWN_COLOURS.get(name, COLOURS[arm["kind"]])


def _heading(results: Results) -> str:
    trials = max(panel["settings"]["trials"] for panel in results["panels"])
    quick = ", QUICK: answers nothing" if results["quick"] else ""
    same = ", one point of the grid for all" if results["same"] else ""
    return f"{results['name']}: {results['title']} ({trials} paired seeds{same}{quick})"


def _kinds(results: Results) -> dict[str, str]:
    """The colour of each arm."""
    return {name: colour(name, arm) for panel in results["panels"] for name, arm in panel["arms"].items()}


def _styles(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A marker for each arm that others are measured against."""
    return dict(zip(dict.fromkeys(other for _, other in pairs), "osD^", strict=False))


def _forest(axes: Axes, results: Results, measure: int | str) -> None:
    """A row for each panel and pair: the difference and its interval; full where it is shown after correction."""
    colours = _kinds(results)
    rows = [row for row in results["comparisons"] if row["measure"] == measure]
    pairs = list(dict.fromkeys((row["arm"], row["against"]) for row in rows))
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    styles = _styles(pairs)
    for row in rows:
        y = -(panels.index(row["panel"]) * (len(pairs) + 1) + pairs.index((row["arm"], row["against"])))
        reach = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        axes.errorbar([row["mean"]], [y], xerr=reach, color=colours[row["arm"]], marker=styles[row["against"]],
                      markersize=5, capsize=2, linewidth=1.3,
                      markerfacecolor=colours[row["arm"]] if row["corrected"] < SHOWN else "white")  # fmt: skip
    axes.axvline(0, color=PALETTE["grey"], linewidth=0.8)
    middle = (len(pairs) - 1) / 2
    axes.set_yticks([-(index * (len(pairs) + 1) + middle) for index in range(len(panels))], panels, fontsize=8)
    axes.set_title(moment(measure), fontsize=9)
    axes.set_xlabel("difference in test accuracy (points)")
    axes.grid(axis="x", alpha=0.25)


def _legend_of_pairs(figure: Figure, results: Results) -> None:
    line = require("matplotlib.lines", "train").Line2D
    colours = _kinds(results)
    pairs = list(dict.fromkeys((row["arm"], row["against"]) for row in results["comparisons"]))
    styles = _styles(pairs)
    handles = [line([], [], color=colours[one], marker=styles[other], label=f"{one} − {other}")  # noqa: RUF001
               for one, other in pairs]  # fmt: skip
    handles.append(line([], [], color=PALETTE["grey"], marker="o", markerfacecolor="white", linestyle="",
                        label="hollow: not shown after correction"))  # fmt: skip
    legend_below(figure, handles, columns=3)


def differences(results: Results) -> Figure:
    """A column for each measure, a group of rows for each panel."""
    measures = list(dict.fromkeys(row["measure"] for row in results["comparisons"]))
    rows = len({(row["panel"], row["arm"], row["against"]) for row in results["comparisons"]})
    figure = new_figure(3.2 * len(measures) + 1.5, 1.8 + 0.25 * rows)
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for axes, measure in zip(panels, measures, strict=True):
        _forest(axes, results, measure)
    open_frames(panels)
    _legend_of_pairs(figure, results)
    heading(figure, _heading(results))
    return figure


def fan_in(results: Results) -> Figure:
    """The differences at the last epoch; and for every panel each neuron's step and flips against its inputs."""
    measured_panels = results["panels"]
    figure = new_figure(11, 3.2 + 1.9 * len(QUANTITIES))
    above, below = figure.subfigures(2, 1, height_ratios=(2.6, 1.9 * len(QUANTITIES)))
    first = above.subplots()
    _forest(first, results, LAST)
    panels = below.subplots(len(QUANTITIES), len(measured_panels), squeeze=False)
    for column, panel in zip(panels.T, measured_panels, strict=True):
        for axes, quantity in zip(column, QUANTITIES, strict=True):
            for name, arm in panel["arms"].items():
                axes.scatter(*by_degree(finished(arm), quantity), s=7, alpha=0.4, color=colour(name, arm), linewidths=0)
            axes.set_xscale("log")
        column[0].set_yscale("log")
        column[0].set_title(panel["title"].replace(", ", "\n"), fontsize=8)
        column[-1].set_xlabel("inputs of the neuron", fontsize=8)
    for axes, told in zip(panels[:, 0], QUANTITIES.values(), strict=True):
        axes.set_ylabel(told, fontsize=8)
    line = require("matplotlib.lines", "train").Line2D
    dots = [line([], [], color=shade, marker="o", markersize=4, linestyle="", label=name)
            for name, shade in _kinds(results).items()]  # fmt: skip
    panels[-1, -1].legend(handles=dots, fontsize=7, frameon=False)
    open_frames([first, *panels.flat])
    _legend_of_pairs(figure, results)
    heading(figure, _heading(results))
    return figure


COSTS: dict[str, Callable[[Results, str, str, Mapping[str, Any]], float]] = {
    "connections": lambda results, title, name, arm: arm["costs"]["connections"],
    "multiply-adds of an image, forward": lambda results, title, name, arm: arm["costs"]["multiply_adds"],
    "milliseconds of a training step": lambda results, title, name, arm: (
        1000 * results["times"]["seconds"][title][name]["median"]
    ),
}


def pareto(results: Results) -> Figure:
    """Accuracy at the last epoch against connections, multiply-adds and time: a row for each data set, a line for each
    kind of network."""
    by_data: dict[str, list[Mapping[str, Any]]] = {}
    for panel in results["panels"]:
        by_data.setdefault(panel["settings"]["data"], []).append(panel)
    figure = new_figure(11, 1.4 + 3.0 * len(by_data))
    panels = figure.subplots(len(by_data), len(COSTS), squeeze=False, sharey="row")
    handles: dict[str, Any] = {}
    for row, (data, measured_panels) in zip(panels, by_data.items(), strict=True):
        for axes, (told, cost) in zip(row, COSTS.items(), strict=True):
            for name in measured_panels[0]["arms"]:
                points = []
                for panel in measured_panels:
                    arm = panel["arms"][name]
                    values = [measured(run, LAST) for run in finished(arm)]
                    if values:
                        spread = statistics.stdev(values) if len(values) > 1 else 0.0
                        points.append((cost(results, panel["title"], name, arm), statistics.fmean(values), spread))
                if points:
                    x, y, spread = zip(*sorted(points), strict=True)
                    handles[name] = axes.errorbar(x, y, spread, color=colour(name, arm), capsize=2, linewidth=1.2,
                                                  marker=MARKERS.get(arm["kind"], "o"), markersize=4)  # fmt: skip
            axes.set_xscale("log")
            axes.set_xlabel(told)
            axes.grid(alpha=0.25)
        row[0].set_ylabel(f"{data}\ntest accuracy (%)")
    open_frames(panels.flat)
    legend_below(figure, handles)
    heading(figure, _heading(results) + ", one standard deviation")
    return figure


PICTURES: dict[str, Callable[[Results], Figure]] = {"differences": differences, "fan-in": fan_in, "pareto": pareto}
