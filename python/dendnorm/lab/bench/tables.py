"""What was measured, in Markdown."""

from __future__ import annotations

import math
from typing import Any

from ..report import markdown_table
from .contenders import OURS

__all__ = ["conv_table", "table"]


def table(results: dict[str, Any]) -> str:
    """Markdown: the machine, every shape with medians, ratios, GFLOP/s, memory and share of the floor; the sweeps."""
    lines = _measured("One training step: forward, dX, dV, dbias", results)
    entries = results["shapes"]
    if entries and OURS in entries[0]["contenders"]:
        lines += _reached(entries)
    for title, sweep in results.get("sweeps", {}).items():
        if sweep:
            lines += _rewiring(sweep) if title == "rewiring" else _against(title, sweep)
        if title == "density" and "crossover" in results:
            found = results["crossover"]
            lines += ["", "Dense wins at no measured density." if found is None else f"Dense wins from {found:.0%} on."]
    return "\n".join(lines) + "\n"


def conv_table(results: dict[str, Any]) -> str:
    """Markdown: the machine, every convolution with medians, ratios and GFLOP/s; where dense begins to win."""
    lines = _measured("One training step of a convolution: forward, dX, dV", results)
    entries = results["shapes"]
    if entries and OURS in entries[0]["contenders"]:
        peers = [name for name in entries[0]["contenders"] if name != OURS]
        rows = []
        for entry in entries:
            best, ratios = entry["dense_over_ours"], entry["speedup"]
            row = [_title(entry), "-" if best is None else f"{best:.2f}"]
            row += [f"{ratios[name]['median']:.2f}" if name in ratios else "-" for name in peers]
            rows.append([*row, f"{entry['contenders'][OURS]['gflops']:.0f}"])
        lines += ["", f"How many times faster {OURS} is (median of the turns), and what it reaches.", ""]
        lines += markdown_table(["layer", "the better dense one", *peers, "GFLOP/s"], rows)
    if results["crossover"]:
        lines += ["", "From which density the better dense one wins:", ""]
        found = {name: "never" if share is None else f"{share:.0%}" for name, share in results["crossover"].items()}
        lines += markdown_table(["layer", "density"], found.items())
    return "\n".join(lines) + "\n"


def _measured(title: str, results: dict[str, Any]) -> list[str]:
    """The machine, times in turns and alone, and why some are missing."""
    lines = [f"# {title}", "", ", ".join(f"{name}: {value}" for name, value in results["machine"].items()), ""]
    lines += ["**Interrupted: this is what was finished.**", ""] * results["interrupted"]
    entries = results["shapes"]
    if not entries:
        return lines
    names = list(entries[0]["contenders"])
    lines += ["Milliseconds, median (lower to upper quartile), in turns within one run.", ""]
    lines += markdown_table(["layer", *names], ([_title(entry), *_times(entry)] for entry in entries))
    reasons = {
        f"- {name}: {value['unavailable']}"
        for entry in entries
        for name, value in entry["contenders"].items()
        if "unavailable" in value
    }
    return [*lines, "", *sorted(reasons), *_alone(entries, names)]


def _alone(entries: list[dict[str, Any]], names: list[str]) -> list[str]:
    """What a layer takes with its data in the caches, which other contenders' turns push out."""
    rows = []
    for entry in entries:
        times = [value.get("alone_ms") for value in entry["contenders"].values()]
        rows.append([_title(entry), *("-" if time is None else f"{time:.3g}" for time in times)])
    lines = ["", "Milliseconds alone: each contender runs its turns one after the other, nobody in between.", ""]
    return lines + markdown_table(["layer", *names], rows)


def _reached(entries: list[dict[str, Any]]) -> list[str]:
    """Ratios to the peers, and what we reach."""
    peers = [name for name in entries[0]["contenders"] if name != OURS]
    floor = any("floor_ms" in entry for entry in entries)
    bound = any("share_of_bound" in entry for entry in entries)
    head = ["layer", *peers, "GFLOP/s", "bytes per connection", "memory against dense"]
    rows = []
    for entry in entries:
        ours, size = entry["contenders"][OURS], entry["bytes"]
        held = size["values"] + size["gradient"] + size["index_tables"]
        row = [_title(entry)]
        row += [f"{entry['speedup'][name]['median']:.2f}" if name in entry["speedup"] else "-" for name in peers]
        row += [f"{ours['gflops']:.0f}", f"{size['per_connection']:.1f}", f"{held / size['dense']:.3f}"]
        if floor:
            # An interruption may come between a time and its floor.
            share = sum(entry["floor_ms"].values()) / ours["median_ms"] if "floor_ms" in entry else math.nan
            row.append(f"{share:.0%}")
        if bound:
            reached = entry.get("share_of_bound", {})
            row.append(", as a graph ".join(f"{reached[key]:.0%}" for key in reached if key != "bound_ms"))
        rows.append(row)
    lines = ["", f"How many times faster {OURS} is (median of the turns), and what it reaches.", ""]
    head += ["share of the floor"] * floor + ["share of the bound"] * bound
    return lines + markdown_table(head, rows)


def _against(title: str, sweep: list[dict[str, Any]]) -> list[str]:
    rows = []
    for entry in sweep:
        ours = entry["contenders"].get(OURS, {}).get("median_ms")
        share = "-" if ours is None else f"{ours * 1e6 / entry['nnz']:.3f}"
        rows.append([_title(entry), str(entry["threads"]), *_times(entry), share])
    head = ["layer", "threads", *sweep[0]["contenders"], "ns per connection"]
    return ["", f"Against {title}:", "", *markdown_table(head, rows)]


def _rewiring(sweep: list[dict[str, Any]]) -> list[str]:
    lines = ["", "Rewiring 15 % of a layer (4 % density, Adam's state moves along), in steps at batch 128:", ""]
    rows = (
        [f"{entry['nnz']:,}", f"{entry['step_ms']:.2f}", f"{entry['rewiring_ms']:.2f}", f"{entry['steps']:.1f}"]
        for entry in sweep
    )
    return lines + markdown_table(["connections", "step, ms", "rewiring, ms", "rewiring / step"], rows)


def _title(entry: dict[str, Any]) -> str:
    shape = entry["shape"]
    name = shape.get("name") or f"{shape['in']} → {shape['out']}"
    return f"{name}, {shape['batch']}, {100 * shape['density']:g} %"


def _times(entry: dict[str, Any]) -> list[str]:
    cells = []
    for value in entry["contenders"].values():
        if "unavailable" in value:
            cells.append("-")
        else:
            low, high = value["quartiles_ms"]
            cells.append(f"{value['median_ms']:.3g} ({low:.3g}-{high:.3g})")
    return cells
