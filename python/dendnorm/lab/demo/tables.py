"""The demonstration in words: its table, and what is to be seen in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..report import counted, markdown_table
from ..results import failures, mean_and_deviation
from ..settings import words
from .networks import NETWORKS

__all__ = ["readings", "table"]

DRAW = 1.1  # times are called different from this ratio on
ERRORS = 2.0  # accuracies are called different from so many standard errors of their difference on

Size = Mapping[str, Any]


def _last(entry: Mapping[str, Any]) -> tuple[float, float]:
    """Mean and standard deviation of the final test accuracy before rewiring, in percent."""
    accuracy = entry["before"]["test_accuracy"]
    return 100 * accuracy["mean"][-1], 100 * accuracy["std"][-1]


def _against(entry: Mapping[str, Any], other: Mapping[str, Any], name: str) -> str:
    """Whether the first of two networks is ahead, as far as the trials show."""
    (mean, spread), (other_mean, other_spread) = _last(entry), _last(other)
    difference = mean - other_mean
    error = math.sqrt(spread**2 / entry["trials"] + other_spread**2 / other["trials"])
    if min(entry["trials"], other["trials"]) < 2:
        return f"{difference:+.2f} points against {name} in one trial"
    if abs(difference) <= ERRORS * error:
        return f"not to be told from {name} ({difference:+.2f} points)"
    return f"{abs(difference):.2f} points {'ahead of' if difference > 0 else 'behind'} {name}"


def _time(size: Size, kind: str) -> str:
    """An epoch of sparse networks against a dense one."""
    dense, sparse = (size["summary"][name]["seconds"] for name in ("dense", kind))
    told = f"{sparse:.3f} s against {dense:.3f} s of dense"
    if dense >= DRAW * sparse:
        return f"an epoch takes {told}: {dense / sparse:.1f} times as fast"
    loses = "a loss" if sparse >= DRAW * dense else "nothing is won"
    return f"an epoch takes {told}: {loses}, steps this small are calls and not arithmetic"


def readings(results: Mapping[str, Any]) -> list[str]:
    """A sentence for each size in which every network was trained: what is won and what is lost."""
    lines = []
    for size in results["sizes"]:
        summary = size["summary"]
        if not all(kind in summary for kind in NETWORKS):
            continue
        dense, plain, normalised = (summary[kind] for kind in NETWORKS)
        accuracy = f"{_against(normalised, dense, 'dense')} and {_against(normalised, plain, 'sparse without')}"
        share = f"{size['network']}, {size['settings']['epsilon']:.0%} of the hidden connections"
        lines.append(f"{share}: normalised is {accuracy}; {_time(size, 'l0')}.")
    return lines


def _rows(size: Size) -> list[list[str]]:
    rows = []
    for kind, entry in size["summary"].items():
        costs = size["costs"][kind]
        rows.append([
            size["network"], NETWORKS[kind], f"{size['chosen'][kind]:g}", str(entry["trials"]),
            str(len(entry["epochs"])), mean_and_deviation(entry["before"]["test_accuracy"], -1, 100, 2) + " %",
            f"{costs['connections']:,}", f"{costs['multiply_adds']:,}", f"{entry['seconds']:.3f}",
        ])  # fmt: skip
    return rows


def _searched(size: Size) -> list[list[str]]:
    """What every learning rate reached; the chosen one is bold."""

    def cell(point: Mapping[str, Any], chosen: float) -> str:
        accuracy = point["validation_accuracy"]
        told = "failed" if accuracy is None else f"{100 * accuracy:.2f}"
        return f"**{told}**" if point["lr"] == chosen else told

    return [
        [size["network"], NETWORKS[kind], *(cell(point, size["chosen"][kind]) for point in points)]
        for kind, points in size["grid"].items()
    ]


def _at_an_end(results: Mapping[str, Any]) -> list[str]:
    """The networks whose best learning rate is the first or the last that was tried: there may be a better one."""
    return [
        f"{size['network']}, {NETWORKS[kind]}"
        for size in results["sizes"]
        for kind, points in size["grid"].items()
        if size["chosen"][kind] in (points[0]["lr"], points[-1]["lr"])
    ]


def table(results: Mapping[str, Any]) -> str:
    """Markdown: what every network reached and what it cost, what to see, and how learning rates were chosen."""
    settings = results["sizes"][0]["settings"]
    examples = results["examples"]
    told = words(settings, leave_out=("s", "lr", "matched"))
    lines = [
        f"# {settings['data']}: dense and sparse networks of equal width",
        "",
        f"{told}, {settings['zeta']:.0%} of the sparse connections rewired after each epoch;"
        f" {results['device']}, {counted(results['threads'], 'thread')}."
        " Mean and standard deviation over trials of the accuracy on test images, at the last epoch, before rewiring.",
    ]
    if results["interrupted"]:
        lines += ["", "**Interrupted: this is what was finished.**"]
    head = ["network", "hidden layers", "learning rate", "trials", "epochs", "test accuracy", "hidden connections",
            "multiply-adds for an image", "seconds per epoch"]  # fmt: skip
    lines += ["", *markdown_table(head, [row for size in results["sizes"] for row in _rows(size)])]
    for size in results["sizes"]:
        lines += failures(size["runs"], f"{size['network']}, ")
    seen = [f"- {line}" for line in readings(results)]
    if seen:
        lines += ["", "What to see:", "", *seen]
    searched = [row for size in results["sizes"] for row in _searched(size)]
    if searched:
        rates = [f"{point['lr']:g}" for point in results["sizes"][0]["grid"]["dense"]]
        told = (
            f"Learning rates: each network took the best of these on {examples['validation']} training images that were"
            " held out. Accuracy on them, %, one network each, the chosen one bold:"
        )
        lines += ["", told, "", *markdown_table(["network", "hidden layers", *rates], searched)]
        ends = _at_an_end(results)
        if ends:
            lines += ["", f"At an end of what was tried, where another rate might be better: {'; '.join(ends)}."]
    return "\n".join(lines) + "\n"
