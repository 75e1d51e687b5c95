"""The paper's numbers beside what was measured, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..data import COIL_SOURCE
from ..report import markdown_table
from ..results import PHASES, failures, label, mean_and_deviation
from ..search import SEARCHED
from ..settings import words
from .catalogue import EXPERIMENTS
from .panels import finished, marks

__all__ = ["table"]


def _spread(values: Sequence[float], digits: int = 2) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def _learning_table(results: Mapping[str, Any]) -> list[str]:
    head = ["network", "norm", *SEARCHED, "trials", "epochs", "accuracy before rewiring, %", "after, %"]
    head += ["training cost before", "after", "paper, %"]
    rows = []
    for panel in results["panels"]:
        for norm, entry in panel["summary"].items():
            chosen = panel.get("chosen", {}).get(norm, panel["settings"])
            cells = [panel["title"], entry["label"], *(f"{chosen[name]:g}" for name in SEARCHED)]
            cells += [str(entry["trials"]), str(len(entry["epochs"]))]
            cells += [mean_and_deviation(entry[phase]["test_accuracy"], -1, 100, 2) for phase in PHASES]
            cells += [mean_and_deviation(entry[phase]["train_cost"], -1, 1, 4) for phase in PHASES]
            published = panel["published"].get(norm)
            rows.append([*cells, "" if published is None else f"{published:.2f}"])
    return markdown_table(head, rows)


def _inside_table(results: Mapping[str, Any]) -> list[str]:
    """Numbers of both parts of figure 2, mean and standard deviation over trials."""
    head = ["norm", "epoch", "trials", "connections from the middle 14 x 14 pixels, %"]
    head += ["deviation of afferents", "of weights", "of mean weighted inputs"]
    (panel,) = results["panels"]
    rows = []
    for norm, records in finished(panel).items():
        for index, epoch in enumerate(look["epoch"] for look in records[0]["inside"]):
            looks = [record["inside"][index] for record in records]
            efferents = [torch.tensor(look["efferents"], dtype=torch.float64).view(28, 28) for look in looks]
            middle = [100 * (image[7:21, 7:21].sum() / image.sum()).item() for image in efferents]
            cells = [label(norm), str(epoch), str(len(looks)), _spread(middle)]
            for key in ("afferents", "weights", "weighted_input"):
                cells.append(_spread([statistics.pstdev(look[key]) for look in looks], 3))
            rows.append(cells)
    return markdown_table(head, rows)


def _orders_table(results: Mapping[str, Any]) -> list[str]:
    (panel,) = results["panels"]
    epochs = marks(panel)
    head = ["norm", "trials", *(f"epoch {epoch}, {phase}, %" for epoch in epochs for phase in PHASES)]
    rows = [
        [entry["label"], str(entry["trials"])]
        + [mean_and_deviation(entry[phase]["test_accuracy"], epoch - 1, 100, 2) for epoch in epochs for phase in PHASES]
        for entry in panel["summary"].values()
    ]
    return markdown_table(head, rows)


TABLES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "learning": _learning_table,
    "efferents": _inside_table,
    "afferents": _inside_table,
    "orders": _orders_table,
}


def table(results: Mapping[str, Any]) -> str:
    """Markdown: what was reached, mean and standard deviation over trials, beside the paper's numbers."""
    experiment = EXPERIMENTS[results["name"]]
    lines = [f"# {results['name']}: {results['title']}", "", f"The paper: {results['claim']}", ""]
    settings = results["panels"][0]["settings"]
    lines.append(
        f"{words(settings, leave_out=SEARCHED)}, {settings['zeta']:.0%} rewired after each epoch, seeds"
        f" {settings['seed']} to {settings['seed'] + settings['trials'] - 1}. Last epoch, test data, mean and standard"
        " deviation over trials."
    )
    if results["quick"]:
        lines += ["", "**Quick: one trial, one or two epochs. This shows that it works, and reproduces nothing.**"]
    lines += ["", *TABLES[experiment.layout](results)]
    for panel in results["panels"]:
        lines += failures(panel["runs"], f"{panel['title']}, ")
    for title in results["missing"]:
        where = f" COIL-100 is at {COIL_SOURCE}." if title.startswith("COIL") else ""
        lines += ["", f"Not measured: {title}; its data are not in the folder given.{where}"]
    return "\n".join(lines) + "\n"
