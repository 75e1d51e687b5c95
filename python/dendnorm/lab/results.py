"""What an experiment leaves: a record for each network, their summary, and how both are put into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .report import markdown_table
from .settings import Settings, words

__all__ = ["PHASES", "describe", "label", "mean_and_deviation", "new_record", "summarise", "table"]

PHASES = ("before", "after")  # rewiring
QUANTITIES = ("train_cost", "test_cost", "test_accuracy")


def label(norm: str) -> str:
    """The name of a norm in tables and pictures: the paper's words for the paper's norms."""
    known = {
        "none": "control",
        "l0": "dendritic (L0)",
        "l0-variable": "dendritic (L0), one excitability per neuron",
        "weight_norm": "heterosynaptic (weight normalisation)",
        "joint": "joint (L0 and L2)",
        "l0-mean": "constant mean count",
        "layer_norm": "layer normalisation",
        "dense": "dense, equal width",
        "dense-narrow": "dense, equal parameters",
    }
    if norm.startswith("lp-variable:"):
        return f"L{norm.partition(':')[2]}, one excitability per neuron"
    if norm.startswith("lp:"):
        return f"L{norm.partition(':')[2]}"
    return known.get(norm, norm)


def new_record(settings: Settings, norm: str, trial: int) -> dict[str, Any]:
    """What ``train.train_network`` fills, for the trial of a norm."""
    record: dict[str, Any] = {"norm": norm, "label": label(norm), "trial": trial, "complete": False}
    return record | {"seed": settings.seed + trial, "epochs": []}


def summarise(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Mean and sample standard deviation per norm, phase, quantity and epoch.

    Only whole trials count; where some norm has none, the epochs that every unfinished trial reached.

    Returns:
        by norm: label, trials, epochs (list), seconds (per epoch; None where it was not kept), and
        [phase][quantity] -> {"mean", "std"} (lists).
    """
    by_norm: dict[str, list[dict[str, Any]]] = {norm: [] for norm in results["settings"]["norms"]}
    for record in results["runs"]:
        if record["epochs"]:
            by_norm[record["norm"]].append(record)
    by_norm = {norm: records for norm, records in by_norm.items() if records}
    if all(any(record["complete"] for record in records) for records in by_norm.values()):
        by_norm = {norm: [r for r in records if r["complete"]] for norm, records in by_norm.items()}
    length = min((len(r["epochs"]) for records in by_norm.values() for r in records), default=0)
    return {norm: _summary(norm, records, length) for norm, records in by_norm.items()}


def _summary(norm: str, records: Sequence[dict[str, Any]], length: int) -> dict[str, Any]:
    """Of the first epochs of some records."""
    times = [entry["seconds"] for record in records for entry in record["epochs"][:length] if "seconds" in entry]
    summary: dict[str, Any] = {
        "label": label(norm),
        "trials": len(records),
        "epochs": list(range(1, length + 1)),
        "seconds": sum(times) / len(times) if times else None,
    }
    for phase in PHASES:
        summary[phase] = {}
        for quantity in QUANTITIES:
            values = torch.tensor(
                [[entry[phase][quantity] for entry in record["epochs"][:length]] for record in records],
                dtype=torch.float64,
            )
            spread = values.std(0) if len(records) > 1 else torch.zeros(length, dtype=torch.float64)
            summary[phase][quantity] = {"mean": values.mean(0).tolist(), "std": spread.tolist()}
    return summary


def describe(results: Mapping[str, Any]) -> str:
    """The experiment in one line, for the head of the table and of the picture."""
    settings = results["settings"]
    return (
        f"{settings['data']}, {'-'.join(map(str, results['network']))}, {settings['epsilon']:.0%} of connections,"
        f" {settings['zeta']:.0%} rewired after each epoch"
    )


def mean_and_deviation(values: Mapping[str, Sequence[float]], epoch: int, factor: float, digits: int) -> str:
    """What ``summarise`` has for an epoch; -1: the last."""
    return f"{factor * values['mean'][epoch]:.{digits}f} ± {factor * values['std'][epoch]:.{digits}f}"


def failures(runs: Sequence[Mapping[str, Any]], where: str = "") -> list[str]:
    """A paragraph for each network that could not be trained to its end."""
    lines = []
    for record in runs:
        if "failed" in record:
            lines += ["", f"Failed: {where}{record['label']}, trial {record['trial'] + 1}: {record['failed']}."]
    return lines


def table(results: Mapping[str, Any], summary: Mapping[str, dict[str, Any]]) -> str:
    """Markdown: the last epoch of every norm, mean and standard deviation over trials."""
    told = words(results["settings"])
    lines = [f"# {describe(results)}", "", f"{told}. Mean and standard deviation over trials, at the last epoch."]
    if results["interrupted"]:
        lines += ["", "**Interrupted: this is what was finished.**"]
    head = ["network", "trials", "epochs", "test accuracy before rewiring", "after rewiring"]
    head += ["training cost before", "after", "seconds per epoch"]
    rows = []
    for entry in summary.values():
        cells = [entry["label"], str(entry["trials"]), str(len(entry["epochs"]))]
        cells += [mean_and_deviation(entry[phase]["test_accuracy"], -1, 100, 2) + " %" for phase in PHASES]
        cells += [mean_and_deviation(entry[phase]["train_cost"], -1, 1, 4) for phase in PHASES]
        rows.append([*cells, f"{entry['seconds']:.2f}"])
    lines += ["", *markdown_table(head, rows), *failures(results["runs"])]
    return "\n".join(lines) + "\n"
