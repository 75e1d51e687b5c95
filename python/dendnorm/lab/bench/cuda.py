"""What ``dendnorm bench`` does differently on a GPU: events for a clock, CUDA graphs, TF32, and the bound.

The bound of a product is one activation load for each multiply-add, from the fastest memory that can hold a tile of
them (docs/cuda.md). Rates are those that others measured or that the maker names, not this machine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...ops.library import cuda_plan
from .contenders import OURS
from .shape import Shape

__all__ = ["SHAPES", "add_variants", "bound_ms", "elapsed_ms", "in_order"]

Step = Callable[[], None]

# A large layer at several densities, beside the shapes of every device.
SHAPES = tuple(Shape(4096, 4096, 1024, density) for density in (0.01, 0.02, 0.05, 0.1, 0.2))
GRAPH = ", graph"
TF32 = ", TF32"


def elapsed_ms(step: Step, count: int) -> float:
    """Milliseconds on the device for `count` steps, one after the other, by events around them."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def with_tf32(step: Step, allowed: bool) -> Step:
    """The step with dense float32 products in TF32 or not."""

    def run() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = allowed
        try:
            step()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return run


def captured(step: Step) -> Step:
    """The step as a CUDA graph.

    Raises:
        RuntimeError: it cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def add_variants(steps: dict[str, Step], entries: dict[str, dict[str, Any]]) -> None:
    """Every step without TF32, the dense one also with it, and each also as a graph; or why not, in `entries`.

    Ours are captured first: a capture that fails may leave the process unable to capture anything."""
    for name, step in list(steps.items()):
        steps[name] = with_tf32(step, False)
        if name == "dense":
            steps[name + TF32] = with_tf32(step, True)
    for name, step in sorted(steps.items(), key=lambda item: not item[0].startswith(OURS)):
        try:
            steps[name + GRAPH] = captured(step)
        except RuntimeError as error:
            torch.cuda.synchronize()
            entries[name + GRAPH] = {"unavailable": f"cannot be captured: {str(error).splitlines()[0]}"}


def in_order(contenders: Sequence[str], entries: dict[str, dict[str, Any]]) -> list[str]:
    """The names of all entries: as asked for, each with its variants after it."""
    return [name + more for name in contenders for more in ("", GRAPH, TF32, TF32 + GRAPH) if name + more in entries]


@dataclass(frozen=True)
class Rates:
    """Bytes per second that many scattered loads get from a level, and the size of L2."""

    shared: float
    l2: float
    l2_bytes: int
    memory: float


# H100 and H200: shared memory and L2 as measured by github.com/RRZE-HPC/gpu-benches, the memory as NVIDIA names it.
_HOPPER = Rates(33e12, 9.6e12, 50 << 20, 3.35e12)
RATES = {"H100": _HOPPER, "H200": Rates(33e12, 9.6e12, 50 << 20, 4.8e12)}


def rates_of(name: str) -> Rates | None:
    """Of a device by its name, None where they are not known."""
    return next((rates for part, rates in RATES.items() if part in name), None)


def bound_ms(shape: Shape, rates: Rates) -> float:
    """The least time of a training step in float32: for each of three products, or of two where both gradients are made
    of the same loads, 4 bytes for every connection and sample, from the level that the kernels' own cost model
    (cuda/choose.h) has them come from."""
    plan = cuda_plan(shape.inputs, shape.outputs, shape.nnz, shape.batch,
                     l2_bytes=rates.l2_bytes, memory_rate=rates.memory)  # fmt: skip
    loaded = 4.0 * shape.nnz * shape.batch
    return 1e3 * sum(loaded / getattr(rates, product["level"]) for product in plan.values() if product["bytes"])


def share_of_bound(entry: dict[str, Any], shape: Shape, device: torch.device) -> dict[str, float] | None:
    """What our step, and our step as a graph, reach of the bound; None on a device whose rates are not known."""
    rates = rates_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if rates is None:
        return None
    bound = bound_ms(shape, rates)
    times = {name: entry["contenders"].get(name, {}).get("median_ms") for name in (OURS, OURS + GRAPH)}
    return {"bound_ms": bound} | {name: bound / time for name, time in times.items() if time}
