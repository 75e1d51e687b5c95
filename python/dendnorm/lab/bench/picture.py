"""The picture of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._extras import require

__all__ = ["bench"]

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
