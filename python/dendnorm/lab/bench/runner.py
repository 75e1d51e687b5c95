"""The job of ``dendnorm bench``: forward and backward through the modules, against dense and sparse peers, in one run.

Peers take turns, so that a busy moment of the machine hits all of them, and every ratio is formed within a turn.
Nothing here decides whether a test passes.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import info
from .._extras import require
from ..nn.linear import SparseLinear
from ..rewiring.set import SET
from . import bench_cuda
from .bench_contenders import CONTENDERS, OURS, Shape, Unavailable
from .report import markdown_table, write_text
from .training import choose_device

__all__ = ["CONTENDERS", "SHAPES", "Roofline", "Shape", "measure", "run", "table"]

TURN_SECONDS = 0.02  # how long one contender runs before the next has its turn


SHAPES = tuple(
    Shape(*values)
    for values in (
        (784, 1000, 128, 0.04),
        (1000, 1000, 128, 0.02),
        (784, 100, 32, 0.20),
        (784, 100, 10, 0.20),
        (2048, 2048, 256, 0.05),
        (2048, 2048, 256, 0.10),
        (4096, 4096, 128, 0.01),
        (4000, 1000, 32, 0.05),
        (768, 3072, 1024, 0.10),
        (1000, 1000, 1, 0.05),
        (32768, 32768, 64, 0.001),
    )
)


# ---- Measuring ----

Step = Callable[[], None]


def _step(module: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> None:
    module(x).backward(dy)
    x.grad = None
    for parameter in module.parameters():
        parameter.grad = None


def _same(name: str, module: nn.Module, layer: SparseLinear, x: torch.Tensor) -> None:
    """A contender that computes something else is no contender."""
    rows = x[:16].detach()
    with torch.no_grad():
        expected, got = layer(rows), module(rows)
    if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        raise Unavailable(f"computed something else: off by {(got - expected).abs().max().item():g}")


def measure(
    shape: Shape,
    contenders: Sequence[str] = tuple(CONTENDERS),
    rounds: int = 15,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Time one training step (forward, dX, dV, dbias) of every contender on one shape, in turns.

    On a GPU, dense products are taken with and without TF32, and every contender also as a CUDA graph.

    Args:
        shape: the layer and batch.
        contenders: names out of ``CONTENDERS``.
        rounds: how many turns everyone has.
        dtype: of weights and activations.
        threads: CPU threads; None keeps torch's.
        device: where the layer and its peers are.

    Returns:
        shape, nnz, "contenders" by name: median_ms, quartiles_ms, minimum_ms, gflops, or "unavailable" with the
        reason; "speedup" by peer: median and quartiles of its time divided by ours, turn by turn; "bytes" of the layer.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return _measure(shape, contenders, rounds, dtype, torch.device(device))
    finally:
        torch.set_num_threads(before)


def _step_of(module: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> Step:
    return lambda: _step(module, x, dy)


def _measure(
    shape: Shape, contenders: Sequence[str], rounds: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    nnz = max(1, shape.nnz)
    layer = SparseLinear(shape.inputs, shape.outputs, nnz=nnz, norm=None, seed=0, dtype=dtype, device=device)
    x = torch.randn(shape.batch, shape.inputs, generator=generator).to(device, dtype).requires_grad_()
    dy = torch.randn(shape.batch, shape.outputs, generator=generator).to(device, dtype)
    steps: dict[str, Step] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name in contenders:
        try:
            module = CONTENDERS[name](layer)
            _same(name, module, layer, x)
            steps[name] = _step_of(module, x, dy)
        except Unavailable as error:
            entries[name] = {"unavailable": str(error)}
    on_gpu = device.type == "cuda"
    if on_gpu:
        bench_cuda.add_variants(steps, entries)
    times = _take_turns(steps, rounds, bench_cuda.elapsed_ms if on_gpu else _elapsed_ms)
    flop = 6 * layer.nnz * shape.batch  # what the connections need; the dense ones do more for the same result
    for name, values in times.items():
        entries[name] = {
            "median_ms": statistics.median(values),
            "quartiles_ms": _quartiles(values),
            "minimum_ms": min(values),
            "gflops": flop / statistics.median(values) * 1e-6,
        }
    speedup = {}
    if OURS in times:
        for name, values in times.items():
            if name != OURS:
                ratios = [theirs / ours for theirs, ours in zip(values, times[OURS], strict=True)]
                speedup[name] = {"median": statistics.median(ratios), "quartiles": _quartiles(ratios)}
    order = bench_cuda.in_order(contenders, entries) if on_gpu else contenders
    return {
        "shape": {"in": shape.inputs, "out": shape.outputs, "batch": shape.batch, "density": shape.density},
        "nnz": layer.nnz,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "contenders": {name: entries[name] for name in order},
        "speedup": speedup,
        "bytes": memory(layer),
    }


def _elapsed_ms(step: Step, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) * 1e3


def _take_turns(
    steps: dict[str, Step], rounds: int, elapsed_ms: Callable[[Step, int], float]
) -> dict[str, list[float]]:
    """Milliseconds of one step, by name, turn by turn."""
    counts = {}
    for name, step in steps.items():
        for _ in range(3):  # warm up, and see how long one step takes
            once = elapsed_ms(step, 1)
        counts[name] = max(1, min(1000, int(1e3 * TURN_SECONDS / once)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % max(1, len(names))  # perhaps nobody runs this shape
            for name in names[first:] + names[:first]:
                steps[name]()  # brings its data back into the caches
                times[name].append(elapsed_ms(steps[name], counts[name]) / counts[name])
    finally:
        if collecting:
            gc.enable()
    return times


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def memory(layer: SparseLinear) -> dict[str, float]:
    """Bytes that a layer holds while it trains: values, their gradient, every index table; and per connection."""
    values = layer.weight.numel() * layer.weight.element_size()
    tables = sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers())
    return {
        "values": values,
        "gradient": values,
        "index_tables": tables,
        "per_connection": (2 * values + tables) / max(1, layer.nnz),
        "dense": 2 * layer.in_features * layer.out_features * layer.weight.element_size(),
    }


def measure_rewiring(
    shape: Shape, rounds: int = 5, zeta: float = 0.15, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """A rewiring of `zeta` of a layer with Adam's state, in training steps of that layer (with Adam's update)."""
    layer = SparseLinear(shape.inputs, shape.outputs, nnz=max(1, shape.nnz), seed=0, device=device)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
    rewire = SET(layer, optimizer, zeta=zeta)
    x = torch.randn(shape.batch, shape.inputs, device=device, requires_grad=True)
    dy = torch.randn(shape.batch, shape.outputs, device=device)
    elapsed_ms = bench_cuda.elapsed_ms if torch.device(device).type == "cuda" else _elapsed_ms

    def train() -> None:
        layer(x).backward(dy)
        optimizer.step()
        optimizer.zero_grad()

    steps, rewirings = [], []
    for turn in range(rounds + 1):
        steps += [elapsed_ms(train, 1) for _ in range(5)]
        rewiring = elapsed_ms(lambda: rewire.step(), 1)
        if turn > 0:
            rewirings.append(rewiring)
    step, rewiring = statistics.median(steps), statistics.median(rewirings)
    return {"nnz": layer.nnz, "step_ms": step, "rewiring_ms": rewiring, "steps": rewiring / step}


# ---- The floor ----


@dataclass(frozen=True)
class Roofline:
    """Load rates measured by benchmarks/roofline: one activation load per multiply-add bounds a sparse product."""

    threads: int
    sizes: tuple[float, ...]
    rates: tuple[float, ...]  # GB/s of all threads together
    fma_gflops: float

    @classmethod
    def read(cls, path: str | Path) -> Roofline:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            load = content["load"]
            return cls(
                int(content["threads"]),
                tuple(float(entry["bytes"]) for entry in load),
                tuple(float(entry["gb_per_s"]) for entry in load),
                float(content["fma_gflops"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"roofline must be a file that benchmarks/roofline wrote, got {path} ({error!r})"
            ) from None

    def rate(self, size: float) -> float:
        """GB/s from a buffer of `size` bytes, between the measured sizes on a logarithmic scale."""
        if size <= self.sizes[0]:
            return self.rates[0]
        for (low, high), (slow, fast) in zip(pairwise(self.sizes), pairwise(self.rates), strict=True):
            if size <= high:
                share = math.log(size / low) / math.log(high / low)
                return slow + (fast - slow) * share
        return self.rates[-1]

    def floor_ms(self, shape: Shape) -> tuple[float, float]:
        """The least time of the forward pass and of the backward pass that loads dY once, fp32, tiles of 64 samples."""
        tile = min(64, shape.batch)
        loaded = 4.0 * shape.nnz * shape.batch
        forward = max(loaded / self.rate(4 * shape.inputs * tile), 2 * shape.nnz * shape.batch / self.fma_gflops)
        backward = max(loaded / self.rate(4 * shape.outputs * tile), 4 * shape.nnz * shape.batch / self.fma_gflops)
        return forward * 1e-6, backward * 1e-6


# ---- The whole run ----


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


def crossover(results: Sequence[dict[str, Any]]) -> float | None:
    """The density from which dense wins, between two measured ones on a logarithmic scale; None: it never did."""
    points = []
    for result in results:
        mine, dense = result["contenders"].get(OURS, {}), result["contenders"].get("dense", {})
        if "median_ms" in mine and "median_ms" in dense:
            points.append((result["shape"]["density"], mine["median_ms"] / dense["median_ms"]))
    points.sort()
    for (low, before), (high, after) in pairwise(points):
        if before < 1 <= after:
            share = math.log(1 / before) / math.log(after / before)
            return low * (high / low) ** share
    return points[0][0] if points and points[0][1] >= 1 else None


DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


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
) -> dict[str, Any]:
    """Measure and write bench.json, bench.md and, with sweeps, bench.png into `out`.

    Args:
        shapes: what the table holds; None: those of ``SHAPES`` and, on a GPU, a large layer at several densities.
        contenders: names out of ``CONTENDERS``.
        sweeps: time against density (with the crossover to dense), connections, batch and threads as well.
        rounds: turns for every shape.
        dtype: float32 or float64.
        roofline: this machine's measured floor; None leaves that column out.
        device: "cpu" or "cuda".
        progress: say on standard error what is being measured.

    Raises:
        ValueError: an unknown contender, or nothing to measure.
    """
    for name in contenders:
        if name not in CONTENDERS:
            raise ValueError(f"contender must be one of {', '.join(CONTENDERS)}, got {name!r}")
    device = choose_device(str(device))
    on_gpu = device.type == "cuda"
    if shapes is None:
        shapes = SHAPES + bench_cuda.SHAPES if on_gpu else SHAPES
    if not shapes:
        raise ValueError("shapes must hold at least one shape, got none")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if sweeps:
        require("matplotlib", "bench")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    def tick(text: str) -> None:
        if progress:
            print(text, file=sys.stderr, flush=True)

    def add(into: list[dict[str, Any]], shape: Shape, names: Sequence[str], turns: int,
            threads: int | None = None) -> dict[str, Any]:  # fmt: skip
        tick(str(shape) if threads is None else f"{shape}, {threads} threads")
        into.append(measure(shape, names, turns, dtype, threads, device))
        return into[-1]

    facts = machine() | {"threads": torch.get_num_threads()}
    if on_gpu:
        facts["device"] = torch.cuda.get_device_name(device)
    results: dict[str, Any] = {"machine": facts, "interrupted": False}
    results["shapes"] = []
    try:
        for shape in shapes:
            entry = add(results["shapes"], shape, contenders, rounds)
            if roofline is not None and not on_gpu:
                forward, backward = roofline.floor_ms(shape)
                entry["floor_ms"] = {"forward": forward, "backward": backward}
            share = bench_cuda.share_of_bound(entry, shape, device)
            if share is not None:
                entry["share_of_bound"] = share
        if sweeps:
            few = max(3, rounds // 3)
            base, large = shapes[0], Shape(4096, 4096, 128, 0.01)
            sparse = [name for name in contenders if name not in ("dense", "masked")]
            results["sweeps"] = sweep = {}
            sweep["density"] = []
            for density in DENSITIES:
                add(sweep["density"], Shape(base.inputs, base.outputs, base.batch, density), contenders, few)
            results["crossover"] = crossover(sweep["density"])
            sweep["nnz"] = []
            for nnz in (10_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000):
                side = round(math.sqrt(nnz * 100))
                add(sweep["nnz"], Shape(side, side, 128, 0.01), sparse, few)
            sweep["batch"] = []
            for batch in (1, 2, 4, 8, 10, 16, 32, 64, 128, 256, 512, 1024):
                add(sweep["batch"], Shape(base.inputs, base.outputs, batch, base.density), contenders, few)
            sweep["threads"] = []
            most = torch.get_num_threads()
            for threads in sorted({1, 2, 4, 8, 16, 32, most}):
                if threads <= most and not on_gpu:
                    add(sweep["threads"], large, sparse, few, threads)
            sweep["rewiring"] = []
            for nnz in (10_000, 100_000, 1_000_000, 10_000_000):
                side = round(math.sqrt(nnz * 25))
                tick(f"rewiring {nnz:,} connections")
                sweep["rewiring"].append(measure_rewiring(Shape(side, side, 128, 0.04), device=device))
    except KeyboardInterrupt:
        results["interrupted"] = True
    write_text(out / "bench.json", json.dumps(results, indent=1))
    write_text(out / "bench.md", table(results))
    if "sweeps" in results and results["sweeps"].get("density"):
        from .bench_picture import bench

        bench(results, out / "bench.png")
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown: the machine, every shape with medians, ratios, GFLOP/s, memory and share of the floor; the sweeps."""
    lines = ["# One training step: forward, dX, dV, dbias", ""]
    lines += [", ".join(f"{name}: {value}" for name, value in results["machine"].items()), ""]
    if results["interrupted"]:
        lines += ["**Interrupted: this is what was finished.**", ""]
    entries = results["shapes"]
    if entries:
        names = list(entries[0]["contenders"])
        lines += ["Milliseconds, median (lower to upper quartile), in turns within one run.", ""]
        lines += markdown_table(["layer", *names], ([_title(entry), *_times(entry)] for entry in entries))
        reasons = {
            f"- {name}: {value['unavailable']}"
            for entry in entries
            for name, value in entry["contenders"].items()
            if "unavailable" in value
        }
        lines += ["", *sorted(reasons)]
        if OURS in names:
            lines += _reached(entries)
    for title, sweep in results.get("sweeps", {}).items():
        if sweep:
            lines += _rewiring(sweep) if title == "rewiring" else _against(title, sweep)
        if title == "density" and "crossover" in results:
            found = results["crossover"]
            lines += ["", "Dense wins at no measured density." if found is None else f"Dense wins from {found:.0%} on."]
    return "\n".join(lines) + "\n"


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
    return f"{shape['in']} → {shape['out']}, {shape['batch']}, {100 * shape['density']:g} %"


def _times(entry: dict[str, Any]) -> list[str]:
    cells = []
    for value in entry["contenders"].values():
        if "unavailable" in value:
            cells.append("-")
        else:
            low, high = value["quartiles_ms"]
            cells.append(f"{value['median_ms']:.3g} ({low:.3g}-{high:.3g})")
    return cells
