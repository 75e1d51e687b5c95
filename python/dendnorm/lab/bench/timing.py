"""How a training step is timed: contenders take turns, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ...nn.linear import SparseLinear
from ...rewiring.set import SET
from . import cuda
from .contenders import CONTENDERS, OURS, Unavailable, tolerance
from .shape import Shape

__all__ = ["compared", "measure", "measure_rewiring", "memory", "same", "step_of"]

TURN_SECONDS = 0.02  # how long one contender runs before the next has its turn

Step = Callable[[], None]


def _step(module: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> None:
    module(x).backward(dy)
    x.grad = None
    for parameter in module.parameters():
        parameter.grad = None


def same(name: str, module: nn.Module, layer: nn.Module, x: torch.Tensor) -> None:
    """A contender that computes something else is no contender."""
    rows = x[:16].detach()
    with torch.no_grad():
        expected, got = layer(rows), module(rows)
    room = tolerance(name)
    if not torch.allclose(got, expected, rtol=room, atol=room * expected.abs().max().item()):
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
        shape, nnz, "contenders" by name: median_ms, quartiles_ms, minimum_ms, gflops, and alone_ms, the median with
        nobody else in between, or "unavailable" with the reason; "speedup" by peer: median and quartiles of its time
        divided by ours, turn by turn; "bytes" of the layer.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return _measure(shape, contenders, rounds, dtype, torch.device(device))
    finally:
        torch.set_num_threads(before)


def step_of(module: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> Step:
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
            same(name, module, layer, x)
            step = step_of(module, x, dy)
            step()
            steps[name] = step
        except Unavailable as error:
            entries[name] = {"unavailable": str(error)}
        except RuntimeError as error:
            # What PyTorch has not on this device is no reason to lose what everybody else takes.
            if name.startswith(OURS):
                raise
            entries[name] = {"unavailable": f"fails: {str(error).splitlines()[0]}"}
    on_gpu = device.type == "cuda"
    if on_gpu:
        cuda.add_variants(steps, entries)
    flop = 6 * layer.nnz * shape.batch  # what the connections need; the dense ones do more for the same result
    speedup = compared(steps, entries, rounds, flop, cuda.elapsed_ms if on_gpu else _elapsed_ms)
    order = cuda.in_order(contenders, entries) if on_gpu else contenders
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


def compared(
    steps: dict[str, Step],
    entries: dict[str, dict[str, Any]],
    rounds: int,
    flop: int,
    elapsed_ms: Callable[[Step, int], float] = _elapsed_ms,
) -> dict[str, dict[str, Any]]:
    """Time every step in turns and alone; fills `entries`, and gives our speedup over each peer, turn by turn."""
    times = _take_turns(steps, rounds, elapsed_ms)
    alone = {name: statistics.median(_take_turns({name: step}, max(3, rounds // 3), elapsed_ms)[name])
             for name, step in steps.items()}  # fmt: skip
    for name, values in times.items():
        entries[name] = {
            "median_ms": statistics.median(values),
            "quartiles_ms": _quartiles(values),
            "minimum_ms": min(values),
            "alone_ms": alone[name],
            "gflops": flop / statistics.median(values) * 1e-6,
        }
    speedup = {}
    if OURS in times:
        for name, values in times.items():
            if name != OURS:
                ratios = [theirs / ours for theirs, ours in zip(values, times[OURS], strict=True)]
                speedup[name] = {"median": statistics.median(ratios), "quartiles": _quartiles(ratios)}
    return speedup


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
    tables = sum(table.numel() * table.element_size() for table in (*layer.pattern, layer.pattern_mark))
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
    elapsed_ms = cuda.elapsed_ms if torch.device(device).type == "cuda" else _elapsed_ms

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
