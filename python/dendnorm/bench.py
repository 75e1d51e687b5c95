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

from . import info
from ._extras import require
from ._report import markdown_table, write_text
from .layers import SparseLinear
from .rewiring import SET

__all__ = ["CONTENDERS", "SHAPES", "Roofline", "Shape", "measure", "run", "table"]

DENSE_LIMIT = 2**28  # entries of a weight matrix above which the dense contenders are left out
TURN_SECONDS = 0.02  # how long one contender runs before the next has its turn


@dataclass(frozen=True)
class Shape:
    """A layer and its batch.

    Raises:
        ValueError: names the field, what was expected and what came.
    """

    inputs: int
    outputs: int
    batch: int
    density: float

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"shape: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.density <= 1:
            raise ValueError(f"shape: density must be in (0, 1], got {self.density}")

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From "IN,OUT,BATCH,DENSITY"."""
        parts = text.split(",")
        try:
            if len(parts) != 4:
                raise ValueError
            return cls(int(parts[0]), int(parts[1]), int(parts[2]), float(parts[3]))
        except ValueError as error:
            if str(error).startswith("shape:"):
                raise
            raise ValueError(f'shape must be "IN,OUT,BATCH,DENSITY" as in "784,1000,128,0.04", got {text!r}') from None

    def __str__(self) -> str:
        return f"{self.inputs} -> {self.outputs}, batch {self.batch}, {self.density:.2%}"

    @property
    def nnz(self) -> int:
        return round(self.density * self.inputs * self.outputs)


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


# ---- The contenders: each makes a module with the edges and values of `layer` ----


class Unavailable(Exception):
    """Why a contender does not run this shape."""


class MaskedLinear(nn.Module):
    """What sparsity is simulated with elsewhere: the weight times a mask of zeros and ones, then a dense product."""

    def __init__(self, dense: nn.Linear, mask: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = dense.weight, dense.bias
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class _CsrProduct(torch.autograd.Function):
    """x W^T with torch's own sparse products; the gradient of the values is sampled where the connections are."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, values: torch.Tensor, layer: CsrLinear) -> torch.Tensor:
        ctx.save_for_backward(x, values)
        ctx.layer = layer
        return (layer.matrix(values) @ x.t()).t()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, values = ctx.saved_tensors
        layer = ctx.layer
        dx = (layer.transposed(values) @ dy.t()).t()
        sampled = torch.sparse.sampled_addmm(layer.matrix(values), dy.t(), x, beta=0.0)
        return dx, sampled.values(), None


class CsrLinear(nn.Module):
    """A layer on torch.sparse's CSR tensors: addmm forward and for dX, sampled_addmm for the values."""

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        weight = layer.to_sparse_csr()
        self.shape = tuple(weight.shape)
        self.values = nn.Parameter(weight.values().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        # int64: what sampled_addmm takes on a CPU.
        self.register_buffer("crow", weight.crow_indices().long())
        self.register_buffer("col", weight.col_indices().long())
        self.register_buffer("ccol", layer.ccol_indices.long())
        self.register_buffer("row", layer.row_indices.long())
        self.register_buffer("order", torch.argsort(layer.perm.long()))  # column order from row order

    def matrix(self, values: torch.Tensor) -> torch.Tensor:
        return torch.sparse_csr_tensor(self.crow, self.col, values.detach(), self.shape, check_invariants=False)

    def transposed(self, values: torch.Tensor) -> torch.Tensor:
        ordered = values.detach()[self.order]
        return torch.sparse_csr_tensor(self.ccol, self.row, ordered, self.shape[::-1], check_invariants=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _CsrProduct.apply(x, self.values, self) + self.bias


def _check_dense(layer: SparseLinear) -> None:
    entries = layer.in_features * layer.out_features
    if entries > DENSE_LIMIT:
        raise Unavailable(f"needs {entries * layer.weight.element_size() / 2**30:.1f} GiB for the weight alone")


def _dense(layer: SparseLinear) -> nn.Module:
    _check_dense(layer)
    return layer.to_dense()


def _masked(layer: SparseLinear) -> nn.Module:
    _check_dense(layer)
    row, col = layer.edges()
    mask = layer.weight.new_zeros(layer.out_features, layer.in_features).detach()
    mask[row.long(), col.long()] = 1
    return MaskedLinear(layer.to_dense(), mask)


def _sparseprop(layer: SparseLinear) -> nn.Module:
    if layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
        raise Unavailable("float32 on the CPU only")
    try:
        from sparseprop.modules import SparseLinear as SparseProp
    except ImportError:
        raise Unavailable("not installed (pip install --no-build-isolation --no-deps sparseprop)") from None
    weight = layer.to_sparse_csr()
    # From a dense stand-in of one entry: its own constructor would need the whole dense matrix.
    module = SparseProp(torch.ones(1, 1), nn.Parameter(layer.bias.detach().clone()))
    module.N, module.M = layer.out_features, layer.in_features
    module.W_val = nn.Parameter(weight.values().clone())
    module.W_idx = tuple(
        indices.to(old.dtype)
        for indices, old in zip((weight.crow_indices(), weight.col_indices()), module.W_idx, strict=True)
    )
    return module


def _ours(layer: SparseLinear) -> nn.Module:
    return layer


def _ours_l0(layer: SparseLinear) -> nn.Module:
    weight = layer.to_sparse_csr()
    return SparseLinear.from_csr(
        weight.crow_indices(), weight.col_indices(), weight.values(), shape=weight.shape, bias=layer.bias, norm="l0"
    )


CONTENDERS: dict[str, Callable[[SparseLinear], nn.Module]] = {
    "dense": _dense,
    "masked": _masked,
    "torch.sparse": CsrLinear,
    "SparseProp": _sparseprop,
    "dendnorm": _ours,
    "dendnorm, l0": _ours_l0,
}
OURS = "dendnorm"


# ---- Measuring ----


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
) -> dict[str, Any]:
    """Time one training step (forward, dX, dV, dbias) of every contender on one shape, in turns.

    Args:
        shape: the layer and batch.
        contenders: names out of ``CONTENDERS``.
        rounds: how many turns everyone has.
        dtype: of weights and activations.
        threads: CPU threads; None keeps torch's.

    Returns:
        shape, nnz, "contenders" by name: median_ms, quartiles_ms, minimum_ms, gflops, or "unavailable" with the
        reason; "speedup" by peer: median and quartiles of its time divided by ours, turn by turn; "bytes" of the layer.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return _measure(shape, contenders, rounds, dtype)
    finally:
        torch.set_num_threads(before)


def _measure(shape: Shape, contenders: Sequence[str], rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    layer = SparseLinear(shape.inputs, shape.outputs, nnz=max(1, shape.nnz), norm=None, seed=0, dtype=dtype)
    x = torch.randn(shape.batch, shape.inputs, generator=generator).to(dtype).requires_grad_()
    dy = torch.randn(shape.batch, shape.outputs, generator=generator).to(dtype)
    modules: dict[str, nn.Module] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name in contenders:
        try:
            module = CONTENDERS[name](layer)
            _same(name, module, layer, x)
            modules[name] = module
        except Unavailable as error:
            entries[name] = {"unavailable": str(error)}
    counts = {}
    for name, module in modules.items():
        for _ in range(3):  # warm up, and see how long one step takes
            start = time.perf_counter()
            _step(module, x, dy)
            seconds = time.perf_counter() - start
        counts[name] = max(1, min(1000, int(TURN_SECONDS / seconds)))
    times: dict[str, list[float]] = {name: [] for name in modules}
    names = list(modules)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % max(1, len(names))  # perhaps nobody runs this shape
            for name in names[first:] + names[:first]:
                module, count = modules[name], counts[name]
                _step(module, x, dy)  # brings its data back into the caches
                start = time.perf_counter()
                for _ in range(count):
                    _step(module, x, dy)
                times[name].append((time.perf_counter() - start) / count * 1e3)
    finally:
        if collecting:
            gc.enable()
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
    return {
        "shape": {"in": shape.inputs, "out": shape.outputs, "batch": shape.batch, "density": shape.density},
        "nnz": layer.nnz,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "contenders": {name: entries[name] for name in contenders},
        "speedup": speedup,
        "bytes": memory(layer),
    }


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


def measure_rewiring(shape: Shape, rounds: int = 5, zeta: float = 0.15) -> dict[str, float]:
    """A rewiring of `zeta` of a layer with Adam's state, in training steps of that layer (with Adam's update)."""
    layer = SparseLinear(shape.inputs, shape.outputs, nnz=max(1, shape.nnz), seed=0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
    rewire = SET(layer, optimizer, zeta=zeta)
    x = torch.randn(shape.batch, shape.inputs, requires_grad=True)
    dy = torch.randn(shape.batch, shape.outputs)
    steps, rewirings = [], []
    for turn in range(rounds + 1):
        for _ in range(5):
            start = time.perf_counter()
            layer(x).backward(dy)
            optimizer.step()
            optimizer.zero_grad()
            steps.append(time.perf_counter() - start)
        start = time.perf_counter()
        rewire.step()
        if turn > 0:
            rewirings.append(time.perf_counter() - start)
    step, rewiring = statistics.median(steps), statistics.median(rewirings)
    return {"nnz": layer.nnz, "step_ms": 1e3 * step, "rewiring_ms": 1e3 * rewiring, "steps": rewiring / step}


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
    shapes: Sequence[Shape] = SHAPES,
    out: str | Path = "dendnorm-bench",
    *,
    contenders: Sequence[str] = tuple(CONTENDERS),
    sweeps: bool = True,
    rounds: int = 15,
    dtype: torch.dtype = torch.float32,
    roofline: Roofline | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure and write bench.json, bench.md and, with sweeps, bench.png into `out`.

    Args:
        shapes: what the table holds.
        contenders: names out of ``CONTENDERS``.
        sweeps: time against density (with the crossover to dense), connections, batch and threads as well.
        rounds: turns for every shape.
        dtype: float32 or float64.
        roofline: this machine's measured floor; None leaves that column out.
        progress: say on standard error what is being measured.

    Raises:
        ValueError: an unknown contender, or nothing to measure.
    """
    for name in contenders:
        if name not in CONTENDERS:
            raise ValueError(f"contender must be one of {', '.join(CONTENDERS)}, got {name!r}")
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
        into.append(measure(shape, names, turns, dtype, threads))
        return into[-1]

    results: dict[str, Any] = {"machine": machine() | {"threads": torch.get_num_threads()}, "interrupted": False}
    results["shapes"] = []
    try:
        for shape in shapes:
            entry = add(results["shapes"], shape, contenders, rounds)
            if roofline is not None:
                forward, backward = roofline.floor_ms(shape)
                entry["floor_ms"] = {"forward": forward, "backward": backward}
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
                if threads <= most:
                    add(sweep["threads"], large, sparse, few, threads)
            sweep["rewiring"] = []
            for nnz in (10_000, 100_000, 1_000_000, 10_000_000):
                side = round(math.sqrt(nnz * 25))
                tick(f"rewiring {nnz:,} connections")
                sweep["rewiring"].append(measure_rewiring(Shape(side, side, 128, 0.04)))
    except KeyboardInterrupt:
        results["interrupted"] = True
    write_text(out / "bench.json", json.dumps(results, indent=1))
    write_text(out / "bench.md", table(results))
    if "sweeps" in results and results["sweeps"].get("density"):
        from . import plots

        plots.bench(results, out / "bench.png")
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
        rows.append(row)
    lines = ["", f"How many times faster {OURS} is (median of the turns), and what it reaches.", ""]
    return lines + markdown_table([*head, "share of the floor"] if floor else head, rows)


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
