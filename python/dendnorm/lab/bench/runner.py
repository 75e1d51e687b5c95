"""The job of ``dendnorm bench``: forward and backward through the modules, against dense and sparse peers, in one run.

Nothing here decides whether a test passes.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ... import info
from ..._extras import require
from ...analysis.style import save
from ..device import choose_device
from ..report import counted, open_folder, write_text
from . import conv, cuda
from .contenders import CONTENDERS, OURS
from .picture import picture
from .roofline import Roofline
from .shape import SHAPES, Shape
from .tables import conv_table, table
from .timing import measure, measure_rewiring

__all__ = ["RESULTS", "crossover", "run", "run_conv"]

RESULTS = "bench.json"
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
CONNECTIONS = (10_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
BATCHES = (1, 2, 4, 8, 10, 16, 32, 64, 128, 256, 512, 1024)
REWIRED = (10_000, 100_000, 1_000_000, 10_000_000)


def machine() -> dict[str, Any]:
    """The machine, as far as it concerns a time."""
    facts = info.collect()
    return {
        "processor": info.processor(),
        "cores": os.cpu_count(),
        "instruction set": facts["cpu"]["instruction set"],
        "torch's instruction set": facts["cpu"]["torch's instruction set"],
        **facts["versions"],
    }


def crossover(results: Sequence[dict[str, Any]], dense: Sequence[str] = ("dense",)) -> float | None:
    """The density from which dense wins, between two measured ones on a logarithmic scale; None: it never did."""
    points = []
    for result in results:
        times = {name: entry["median_ms"] for name, entry in result["contenders"].items() if "median_ms" in entry}
        theirs = [times[name] for name in dense if name in times]
        if OURS in times and theirs:
            points.append((result["shape"]["density"], times[OURS] / min(theirs)))
    points.sort()
    for (low, before), (high, after) in pairwise(points):
        if before < 1 <= after:
            share = math.log(1 / before) / math.log(after / before)
            return low * (high / low) ** share
    return points[0][0] if points and points[0][1] >= 1 else None


def run(
    shapes: Sequence[Shape] | None = None,
    out: str | Path = "dendnorm-bench",
    *,
    contenders: Sequence[str] = tuple(CONTENDERS),
    sweeps: bool = True,
    rounds: int = 15,
    dtype: torch.dtype = torch.float32,
    roofline: Roofline | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure and write bench.json, bench.md and, with sweeps and matplotlib, bench.png into `out`.

    bench.json is rewritten after every shape, so that whatever ends the run leaves what was measured.

    Args:
        shapes: what the table holds; None: those of ``SHAPES`` and, on a GPU, a large layer at several densities.
        contenders: names out of ``CONTENDERS``.
        sweeps: time against density (with the crossover to dense), connections, batch and threads as well.
        rounds: turns for every shape.
        dtype: float32 or float64.
        roofline: this machine's measured floor; None leaves that column out.
        device: "cpu" or "cuda".
        progress: say on standard error what is being measured.
        overwrite: results that `out` holds may be replaced.

    Raises:
        ValueError: an unknown contender, or nothing to measure.
        FileExistsError: `out` holds results, and they may not be overwritten.
    """
    _check(contenders, CONTENDERS, rounds)
    device = choose_device(str(device))
    on_gpu = device.type == "cuda"
    if shapes is None:
        shapes = SHAPES + cuda.SHAPES if on_gpu else SHAPES
    if not shapes:
        raise ValueError("shapes must hold at least one shape, got none")
    out = open_folder(out, RESULTS, overwrite)

    def tick(text: str) -> None:
        if progress:
            print(text, file=sys.stderr, flush=True)

    drawn = sweeps
    try:
        if sweeps:
            require("matplotlib.figure", "bench")
    except ImportError as error:
        drawn = False
        tick(f"No picture: {error}")

    def timed(shape: Shape, names: Sequence[str], turns: int, threads: int | None = None) -> dict[str, Any]:
        tick(str(shape) if threads is None else f"{shape}, {counted(threads, 'thread')}")
        return measure(shape, names, turns, dtype, threads, device)

    facts = machine() | {"threads": torch.get_num_threads()}
    if on_gpu:
        facts["device"] = torch.cuda.get_device_name(device)
    results: dict[str, Any] = {"machine": facts, "interrupted": False, "shapes": []}

    def keep() -> None:
        write_text(out / RESULTS, json.dumps(results, indent=1))

    try:
        for shape in shapes:
            entry = timed(shape, contenders, rounds)
            results["shapes"].append(entry)
            if roofline is not None and not on_gpu:
                forward, backward = roofline.floor_ms(shape)
                entry["floor_ms"] = {"forward": forward, "backward": backward}
            share = cuda.share_of_bound(entry, shape, device)
            if share is not None:
                entry["share_of_bound"] = share
            keep()
        if sweeps:
            results["sweeps"] = {}
            _sweep(results, shapes[0], contenders, max(3, rounds // 3), device, timed, tick, keep)
    except KeyboardInterrupt:
        results["interrupted"] = True
    keep()
    write_text(out / "bench.md", table(results))
    if drawn and results.get("sweeps", {}).get("density"):
        save(picture(results), out / "bench.png", dpi=150)
    else:  # of what was overwritten
        (out / "bench.png").unlink(missing_ok=True)
    return results


def run_conv(
    shapes: Sequence[conv.ConvShape] = conv.SHAPES,
    out: str | Path = "dendnorm-bench",
    *,
    contenders: Sequence[str] = tuple(conv.CONTENDERS),
    sweeps: bool = True,
    rounds: int = 15,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure convolutions on the CPU, and write bench.json and bench.md into `out`; kept after every one.

    Args:
        sweeps: every shape at several densities, with the crossover to the better dense one.

    The other arguments, and what is raised, are those of ``run``.
    """
    _check(contenders, conv.CONTENDERS, rounds)
    out = open_folder(out, RESULTS, overwrite)
    facts = machine() | {"threads": torch.get_num_threads()}
    results: dict[str, Any] = {"machine": facts, "interrupted": False, "shapes": [], "crossover": {}}
    try:
        for shape in shapes:
            measured = []
            for density in sorted({shape.density, *(conv.DENSITIES if sweeps else ())}):
                one = replace(shape, density=density)
                if progress:
                    print(one, file=sys.stderr, flush=True)
                measured.append(conv.measure(one, contenders, rounds, dtype))
                results["shapes"].append(measured[-1])
                write_text(out / RESULTS, json.dumps(results, indent=1))
            if sweeps:
                results["crossover"][shape.name] = crossover(measured, conv.DENSE)
    except KeyboardInterrupt:
        results["interrupted"] = True
    write_text(out / RESULTS, json.dumps(results, indent=1))
    write_text(out / "bench.md", conv_table(results))
    return results


def _check(contenders: Sequence[str], known: Mapping[str, Any], rounds: int) -> None:
    for name in contenders:
        if name not in known:
            raise ValueError(f"contender must be one of {', '.join(map(repr, known))}, got {name!r}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")


def _sweep(results: dict[str, Any], base: Shape, contenders: Sequence[str], rounds: int, device: torch.device,
           timed: Callable[..., dict[str, Any]], tick: Callable[[str], None],
           keep: Callable[[], None]) -> None:  # fmt: skip
    """Fill results["sweeps"] entry by entry, and keep each."""
    sparse = [name for name in contenders if name not in ("dense", "masked")]

    def add(name: str, entry: dict[str, Any]) -> None:
        results["sweeps"].setdefault(name, []).append(entry)
        keep()

    for density in DENSITIES:
        add("density", timed(replace(base, density=density), contenders, rounds))
    results["crossover"] = crossover(results["sweeps"]["density"])
    for nnz in CONNECTIONS:
        side = round(math.sqrt(nnz * 100))
        add("nnz", timed(Shape(side, side, 128, 0.01), sparse, rounds))
    for batch in BATCHES:
        add("batch", timed(replace(base, batch=batch), contenders, rounds))
    most = torch.get_num_threads()
    for threads in sorted({1, 2, 4, 8, 16, 32, most}):
        if threads <= most and device.type != "cuda":
            add("threads", timed(Shape(4096, 4096, 128, 0.01), sparse, rounds, threads))
    for nnz in REWIRED:
        side = round(math.sqrt(nnz * 25))
        tick(f"rewiring {nnz:,} connections")
        add("rewiring", measure_rewiring(Shape(side, side, 128, 0.04), device=device))
