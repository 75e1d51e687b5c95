"""Pictures of training runs. Drawn without a display, so that they work on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import analysis
from ._extras import require
from .layers import SparseLinear

__all__ = ["afferents", "bench", "curves", "distributions", "efferents", "finished", "learning", "marks", "orders"]

# Distinct for colour-blind readers too (Okabe and Ito), the control in black as in the paper.
COLOURS = {"none": "#000000", "l0": "#0072b2"}
MORE_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES = {"before": "-", "after": "--"}


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


# ---- the paper's figures, in the paper's layout and colours

PAPER_COLOURS = {"none": "#1f77b4", "l0": "#ff7f0e", "weight_norm": "#2ca02c", "joint": "#d62728"}
CONSTANT, VARIABLE = "#e377c2", "#808000"  # excitability, in figure 3G
MARKS = (1, 5, 10, 20)  # epochs that figure 3G shows


def marks(panel: dict[str, Any]) -> list[int]:
    """The epochs of figure 3G that a panel has."""
    return [epoch for epoch in MARKS if epoch <= panel["settings"]["epochs"]]


def finished(panel: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The finished records of each norm of a panel."""
    by_norm = {norm: [r for r in panel["runs"] if r["norm"] == norm and r["complete"]]
               for norm in panel["settings"]["norms"]}  # fmt: skip
    return {norm: records for norm, records in by_norm.items() if records}


def _paper_figure(results: dict[str, Any], rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    figure = require("matplotlib.figure", "train").Figure(figsize=size, layout="constrained")
    trials = max((entry["trials"] for panel in results["panels"] for entry in panel["summary"].values()), default=0)
    shown = f"mean of {trials} trials, one standard deviation" if trials > 1 else "one trial"
    quick = ", QUICK: too short to reproduce anything" if results["quick"] else ""
    figure.suptitle(f"{results['name']}: {results['title']} ({shown}{quick})", fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, panels: Any, path: str | Path) -> None:
    for axes in panels.flat:
        if axes.axison:
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def learning(results: dict[str, Any], path: str | Path) -> None:
    """A column for each network: training cost above, test accuracy below, as in figures 1D and 3C to 3F."""
    ticker = require("matplotlib.ticker", "train")
    count = len(results["panels"])
    figure, panels = _paper_figure(results, 2, count, (max(6.0, 3.1 * count), 5.6))
    handles: dict[str, Any] = {}
    for column, panel in enumerate(results["panels"]):
        for norm, entry in panel["summary"].items():
            for row, quantity, factor in ((0, "train_cost", 1), (1, "test_accuracy", 100)):
                for phase, style in STYLES.items():
                    colour = PAPER_COLOURS.get(norm, "#7f7f7f")
                    mean, spread = (
                        [factor * value for value in entry[phase][quantity][part]] for part in ("mean", "std")
                    )
                    (line,) = panels[row][column].plot(entry["epochs"], mean, style, color=colour, linewidth=1.5,
                                                       marker="o" if len(mean) < 3 else None)  # fmt: skip
                    low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
                    panels[row][column].fill_between(entry["epochs"], low, high, color=colour, alpha=0.15, linewidth=0)
                    handles.setdefault(f"{entry['label']}, {phase} rewiring", line)
            if norm in panel["published"]:
                panels[1][column].axhline(
                    panel["published"][norm], color=PAPER_COLOURS[norm], linestyle=":", linewidth=1
                )
        panels[0][column].set_title(panel["title"].replace(", ", "\n", 1), fontsize=9)
        panels[1][column].set_xlabel("epoch" + (" (dotted: the paper)" if panel["published"] else ""))
        for row in (0, 1):
            panels[row][column].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    panels[0][0].set_ylabel("training cost")
    panels[1][0].set_ylabel("test accuracy (%)")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2 if count < 3 else 4, fontsize=9,
                  frameon=False)  # fmt: skip
    _save(figure, panels, path)


def efferents(results: dict[str, Any], path: str | Path) -> None:
    """Maps of efferent connections per pixel: a row for each norm, a column for each epoch (figure 2A)."""
    numpy = require("numpy", "train")
    by_norm = finished(results["panels"][0])
    looks = {norm: [[r["inside"][i] for r in records] for i in range(len(records[0]["inside"]))]
             for norm, records in by_norm.items()}  # fmt: skip
    maps = {norm: [numpy.mean([look["efferents"] for look in same], axis=0).reshape(28, 28) for same in columns]
            for norm, columns in looks.items()}  # fmt: skip
    top = max(image.max() for images in maps.values() for image in images)
    epochs = [same[0]["epoch"] for same in next(iter(looks.values()))]
    figure, panels = _paper_figure(results, len(maps), len(epochs), (2.3 * len(epochs) + 1, 2.5 * len(maps) + 0.6))
    for row, (norm, images) in enumerate(maps.items()):
        for column, image in enumerate(images):
            axes = panels[row][column]
            drawn = axes.imshow(image, vmin=0, vmax=top, cmap="Blues" if norm == "none" else "Oranges")
            axes.set(xticks=[], yticks=[], title=f"epoch {epochs[column]}" if row == 0 else "")
        panels[row][0].set_ylabel(next(r["label"] for r in by_norm[norm]))
        figure.colorbar(drawn, ax=panels[row].tolist(), label="efferent connections")
    figure.savefig(path, dpi=120)


def afferents(results: dict[str, Any], path: str | Path) -> None:
    """Distributions of afferents, weights and mean weighted inputs at the last epoch looked at (figure 2B)."""
    numpy = require("numpy", "train")
    figure, panels = _paper_figure(results, 1, 3, (11, 3.6))
    by_norm = finished(results["panels"][0])
    names = {"afferents": "afferents of a hidden neuron", "weights": "weight", "weighted_input": "mean weighted input"}
    for axes, (key, label) in zip(panels[0], names.items(), strict=True):
        values = {norm: numpy.concatenate([record["inside"][-1][key] for record in records])
                  for norm, records in by_norm.items()}  # fmt: skip
        every = numpy.concatenate(list(values.values()))
        bins = numpy.linspace(*numpy.quantile(every, (0.002, 0.998)), 41)
        for norm, sample in values.items():
            axes.hist(
                sample, bins, density=True, alpha=0.55, color=PAPER_COLOURS[norm], label=by_norm[norm][0]["label"]
            )
        axes.set(xlabel=label)
    panels[0][0].set_ylabel("density")
    panels[0][1].set_yscale("log")
    panels[0][0].legend(frameon=False, fontsize=8)
    _save(figure, panels, path)


def orders(results: dict[str, Any], path: str | Path) -> None:
    """Accuracy against p, a row for each of the epochs, before and after rewiring (figure 3G)."""
    (panel,) = results["panels"]
    epochs = marks(panel)
    figure, panels = _paper_figure(results, len(epochs), 2, (9, 2.1 * len(epochs) + 1))
    for row, epoch in enumerate(epochs):
        for column, phase in enumerate(STYLES):
            for variable, colour in ((False, CONSTANT), (True, VARIABLE)):
                points = []
                for norm, entry in panel["summary"].items():
                    if norm.partition(":")[0].endswith("-variable") == variable:
                        values = entry[phase]["test_accuracy"]
                        order = int(norm.partition(":")[2] or 0)
                        points.append((order, 100 * values["mean"][epoch - 1], 100 * values["std"][epoch - 1]))
                if points:
                    p, mean, spread = zip(*sorted(points), strict=True)
                    name = "variable excitability" if variable else "constant excitability"
                    panels[row][column].errorbar(p, mean, spread, color=colour, marker="o", markersize=3, capsize=2,
                                                 label=name)  # fmt: skip
            panels[row][column].set_title(f"epoch {epoch}, {phase} rewiring", fontsize=9)
        panels[row][0].set_ylabel("accuracy (%)")
    for axes in panels[-1]:
        axes.set_xlabel("p")
    panels[0][0].legend(frameon=False, fontsize=8)
    _save(figure, panels, path)


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
    _save(figure, panels, path)
