"""The paper's figures, in the paper's layout and colours, from what ``paper.run`` has measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .._extras import require
from ..analysis import pictures

__all__ = ["afferents", "efferents", "finished", "learning", "marks", "orders"]

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


def _heading(results: dict[str, Any], many: str = "mean of {} trials, one standard deviation") -> str:
    trials = max((entry["trials"] for panel in results["panels"] for entry in panel["summary"].values()), default=0)
    shown = many.format(trials) if trials > 1 else "one trial"
    quick = ", QUICK: too short to reproduce anything" if results["quick"] else ""
    return f"{results['name']}: {results['title']} ({shown}{quick})"


def _figure(results: dict[str, Any], rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    figure = require("matplotlib.figure", "train").Figure(figsize=size, layout="constrained")
    figure.suptitle(_heading(results), fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False)


def learning(results: dict[str, Any], path: str | Path) -> None:
    """A column for each network: training cost above, test accuracy below, as in figures 1D and 3C to 3F."""
    ticker = require("matplotlib.ticker", "train")
    count = len(results["panels"])
    figure, panels = _figure(results, 2, count, (max(6.0, 3.1 * count), 5.6))
    handles: dict[str, Any] = {}
    for column, panel in enumerate(results["panels"]):
        for norm, entry in panel["summary"].items():
            for row, quantity, factor in ((0, "train_cost", 1), (1, "test_accuracy", 100)):
                for phase, style in pictures.STYLES.items():
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
    pictures.save(figure, panels, path)


def efferents(results: dict[str, Any], path: str | Path) -> None:
    """Maps of efferent connections per pixel, mean over trials: a row for each norm, a column for each epoch (2A)."""
    maps, titles = {}, []
    for records in finished(results["panels"][0]).values():
        looks = list(zip(*(record["inside"] for record in records), strict=True))
        titles = [f"epoch {same[0]['epoch']}" for same in looks]
        counts = [torch.tensor([look["efferents"] for look in same], dtype=torch.float64) for same in looks]
        maps[records[0]["label"]] = [sample.mean(0).view(28, 28) for sample in counts]
    pictures.efferent_maps(maps, path, titles, _heading(results, "mean of {} trials"))


def afferents(results: dict[str, Any], path: str | Path) -> None:
    """Distributions over the hidden neurons of all trials at the last epoch looked at (2B)."""
    samples = {
        records[0]["label"]: {
            key: [value for record in records for value in record["inside"][-1][key]]
            for key in ("afferents", "weights", "weighted_input")
        }
        for records in finished(results["panels"][0]).values()
    }
    pictures.neurons(samples, path, _heading(results, "the neurons of {} trials"))


def orders(results: dict[str, Any], path: str | Path) -> None:
    """Accuracy against p, a row for each of the epochs, before and after rewiring (figure 3G)."""
    (panel,) = results["panels"]
    epochs = marks(panel)
    figure, panels = _figure(results, len(epochs), 2, (9, 2.1 * len(epochs) + 1))
    for row, epoch in enumerate(epochs):
        for column, phase in enumerate(pictures.STYLES):
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
    pictures.save(figure, panels, path)
