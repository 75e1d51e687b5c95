"""A study in words and numbers: the comparisons, what each arm reached, how it was chosen; Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..report import markdown_table
from ..settings import words
from .catalogue import AREA, LAST
from .collect import measured
from .mechanism import GROUPS, QUANTITIES, contrast

__all__ = ["SHOWN", "comparisons_csv", "reading", "table"]

SHOWN = 0.05  # a difference is called shown below this corrected p

Results = Mapping[str, Any]


def finished(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs of an arm that came to their end."""
    return [run for run in entry["runs"] if "failed" not in run]


def moment(measure: int | str) -> str:
    return f"epoch {measure}" if isinstance(measure, int) else measure


def probability(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(row: Mapping[str, Any]) -> str:
    return "-" if math.isnan(row["low"]) else f"{row['low']:+.2f} to {row['high']:+.2f}"


def reading(results: Results) -> list[str]:
    """One sentence for each pair: in how many panels a difference is shown at the last epoch, and which way."""
    lines = []
    last = [row for row in results["comparisons"] if row["measure"] == LAST]
    for pair in dict.fromkeys((row["arm"], row["against"]) for row in last):
        rows = [row for row in last if (row["arm"], row["against"]) == pair]
        ahead = sum(row["corrected"] < SHOWN and row["mean"] > 0 for row in rows)
        behind = sum(row["corrected"] < SHOWN and row["mean"] < 0 for row in rows)
        means = [row["mean"] for row in rows]
        span = f"{min(means):+.2f} to {max(means):+.2f}" if len(means) > 1 else f"{means[0]:+.2f}"
        lines.append(
            f"{pair[0]} against {pair[1]}: ahead in {ahead}, behind in {behind} and not to be told apart in"
            f" {len(rows) - ahead - behind} of {len(rows)} panels (mean differences {span} points)."
        )
    return lines


def _comparisons(results: Results) -> list[str]:
    head = ["panel", "network", "against", "at", "pairs", "difference, points", "95 % interval", "p", "corrected p"]
    rows = []
    for row in results["comparisons"]:
        shown = f"**{row['mean']:+.2f}**" if row["corrected"] < SHOWN else f"{row['mean']:+.2f}"
        cells = [row["panel"], row["arm"], row["against"], moment(row["measure"]), str(row["n"]), shown]
        rows.append([*cells, interval(row), probability(row["p"]), probability(row["corrected"])])
    return markdown_table(head, rows)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2f}"


def _arms(results: Results) -> list[str]:
    panels = results["panels"]
    names = list(dict.fromkeys(name for panel in panels for arm in panel["arms"].values() for name in arm["chosen"]))
    timed = results.get("times")
    head = ["panel", "network", *names, "trials", "last epoch, %", "after rewiring, %", "area, %"]
    head += ["connections", "multiply-adds", *(["step, ms"] if timed else [])]
    rows = []
    for panel in panels:
        for name, arm in panel["arms"].items():
            runs = finished(arm)
            cells = [panel["title"], name]
            for key in names:
                value = arm["chosen"].get(key, "")
                told = f"{value:g}" if isinstance(value, float) else str(value)
                cells.append(told + " (end)" * (key in arm["at_an_end"]))
            cells += [str(len(runs)), _spread([measured(run, LAST) for run in runs])]
            cells += [_spread([100 * run["after"][-1] for run in runs]), _spread([measured(run, AREA) for run in runs])]
            cells += [f"{arm['costs']['connections']:,}", f"{arm['costs']['multiply_adds']:,}"]
            if timed:
                cells.append(f"{1000 * timed['seconds'][panel['title']][name]['median']:.3f}")
            rows.append(cells)
    return markdown_table(head, rows)


def _mechanism(results: Results) -> list[str]:
    """Hubs and poorly connected neurons, mean over trials; nothing where it was not recorded."""
    rows = []
    for panel in results["panels"]:
        for name, arm in panel["arms"].items():
            found = [one for run in finished(arm) if (one := contrast(run)) is not None]
            if found:
                cells = [panel["title"], name]
                for key, digits in (("afferents", 0), *((key, 3) for key in QUANTITIES)):
                    for group in GROUPS:
                        cells.append(f"{statistics.fmean(one[group][key] for one in found):.{digits}f}")
                rows.append(cells)
    if not rows:
        return []
    head = ["panel", "network", *(f"{told}, {group}"
            for told in ("inputs", *QUANTITIES.values()) for group in GROUPS)]  # fmt: skip
    told = (
        "Over the first epoch, means over the tenth of the neurons with the fewest inputs (poor) and the most (hubs):"
    )
    return ["", told, "", *markdown_table(head, rows)]


def table(results: Results) -> str:
    """Markdown: what is shown, every comparison, every arm."""
    settings = results["panels"][0]["settings"]
    trials = settings["trials"]
    tested = sum(not math.isnan(row["p"]) for row in results["comparisons"])
    lines = [f"# {results['name']}: {results['title']}", "", results["question"], ""]
    told = words(settings, leave_out=("trials", "s", "lr", "moves", "degrees", "data"))
    lines.append(
        f"{told}, {settings['zeta']:.0%} rewired after each epoch; {settings['epochs']} epochs, seeds"
        f" {settings['seed']} to {settings['seed'] + trials - 1}, the same for every network. Settings were chosen on"
        " training images that were held out, one trial for each point of the same grid; (end): at an end of it."
        f" Accuracy on test images, before rewiring unless it is said. Intervals by Student's t of paired differences;"
        f" p is corrected for {tested} comparisons (Holm), and bold where it is then below {SHOWN:g}."
    )
    if results["same"]:
        lines += ["", "All networks have the one point of the grid that is best for the mean of all."]
    if results["quick"]:
        lines += ["", "**Quick: few trials and epochs. This shows that it works, and answers nothing.**"]
    lines += ["", *(f"- {sentence}" for sentence in reading(results))]
    lines += ["", *_arms(results), "", *_comparisons(results), *_mechanism(results)]
    for panel in results["panels"]:
        for name, arm in panel["arms"].items():
            for run in arm["runs"]:
                if "failed" in run:
                    lines += ["", f"Failed: {panel['title']}, {name}, seed {run['seed']}: {run['failed']}."]
    for title in results["missing"]:
        lines += ["", f"Not measured: {title}; its data are not in the folder given."]
    return "\n".join(lines) + "\n"


def comparisons_csv(results: Results) -> str:
    """Every comparison, one a line."""
    names = ["panel", "measure", "arm", "against", "n", "mean", "low", "high", "p", "corrected"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results["comparisons"])
    return text.getvalue()
