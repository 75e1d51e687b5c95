"""The picture of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..._extras import require
from ...analysis.style import NORM_COLOURS, PALETTE, heading, legend_below, new_figure, open_frames
from ..report import counted
from .contenders import OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "picture"]

# Our layers have the colours of their norms; the peers have those that no other contender has.
COLOURS = {
    "dense": PALETTE["reddish purple"],
    "masked": PALETTE["grey"],
    "torch.sparse": PALETTE["orange"],
    "SparseProp": PALETTE["vermillion"],
    "dendnorm": NORM_COLOURS["none"],
    "dendnorm, l0": NORM_COLOURS["l0"],
}
VARIANTS = {", TF32, graph": "-.", ", TF32": "--", ", graph": ":"}  # of a contender on a GPU

Entry = Mapping[str, Any]


def _style(name: str) -> dict[str, Any]:
    """A variant is drawn in its contender's colour."""
    for variant, line in VARIANTS.items():
        if name.endswith(variant):
            return {"color": COLOURS.get(name.removesuffix(variant)), "linestyle": line}
    return {"color": COLOURS.get(name), "linestyle": "-"}


def _draw(axes: Axes, sweep: Sequence[Entry], place: Callable[[Entry], float], scale: Callable[[Entry], float]
          ) -> dict[str, Any]:  # fmt: skip
    """The median of each contender as a line, shaded from the lower to the upper quartile.

    Args:
        place: where an entry lies on the horizontal axis.
        scale: what milliseconds are multiplied with.

    Returns:
        the lines by name.
    """
    lines = {}
    for name in sweep[0]["contenders"] if sweep else ():
        points = []
        for entry in sweep:
            times = entry["contenders"][name]
            if "median_ms" in times:
                points.append(
                    (place(entry), *(scale(entry) * ms for ms in (times["median_ms"], *times["quartiles_ms"])))
                )
        if points:
            x, median, low, high = zip(*points, strict=True)
            style = _style(name)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
            (lines[name],) = axes.plot(x, median, label=name, linewidth=2 if name == OURS else 1.3,
                                       marker="s" if name == OURS else "o", markersize=3.5, **style)  # fmt: skip
    return lines


def picture(results: Mapping[str, Any]) -> Figure:
    """Time of a training step against density, with the crossover to dense; cost of a connection against nnz and batch.

    Args:
        results: what ``runner.run`` returns, with sweeps.
    """
    figure = new_figure(13, 4.8)
    panels = figure.subplots(1, 3)
    sweeps = results["sweeps"]
    base = sweeps["density"][0]["shape"]
    layer = f"{base['in']} → {base['out']}"
    drawn = _draw(panels[0], sweeps["density"], lambda e: 100 * e["shape"]["density"], lambda e: 1.0)
    panels[0].set(title=f"{layer}, batch {base['batch']}", xlabel="connections that exist", ylabel="ms per step")
    drawn |= _draw(panels[1], sweeps.get("nnz", []), lambda e: e["nnz"], lambda e: 1e6 / e["nnz"])
    panels[1].set(title="1 % density, batch 128", xlabel="connections", ylabel="ns per step and connection")
    drawn |= _draw(
        panels[2], sweeps.get("batch", []), lambda e: e["shape"]["batch"], lambda e: 1e3 / e["shape"]["batch"]
    )
    panels[2].set(title=f"{layer}, {100 * results['shapes'][0]['shape']['density']:g} % density", xlabel="batch",
                  ylabel="µs per step and sample")  # fmt: skip
    formatter = require("matplotlib.ticker", "bench").FuncFormatter
    for axes in panels:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(alpha=0.25, which="major")
    panels[0].xaxis.set_major_formatter(formatter(lambda value, position: f"{value:g} %"))
    panels[2].xaxis.set_major_formatter(formatter(lambda value, position: f"{value:g}"))
    found = results.get("crossover")
    if found is not None:
        panels[0].axvline(100 * found, color=COLOURS["dense"], linestyle=":", linewidth=1)
        panels[0].annotate(f"dense wins from {found:.0%} on", (100 * found, 1), xycoords=("data", "axes fraction"),
                           xytext=(-4, -12), textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    open_frames(panels)
    legend_below(figure, drawn, columns=8)
    facts = results["machine"]
    heading(
        figure,
        "One training step (forward, dX, dV, dbias); lower is better; median, shaded: lower to upper quartile\n"
        f"{facts['processor']}, {counted(facts['threads'], 'thread')}, {facts['instruction set']},"
        f" torch {facts['torch']}",
    )
    return figure
