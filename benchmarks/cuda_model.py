"""What a training step should take on an H100 and an H200, and from which density on a dense one takes less, by
calculation: the tables of docs/cuda.md.

    python benchmarks/cuda_model.py

Nothing is measured. Sparse: the cost model of the kernels (cuda/choose.cpp) for the three products in float32, and the
launches of a step of norm l0. Dense: three matrix products at a share of what the data sheet names.
"""

from __future__ import annotations

from dendnorm.ops.library import cuda_plan

SHAPES = [
    (784, 1000, 128, 0.05), (1024, 1024, 128, 0.10), (2048, 2048, 256, 0.10), (2048, 2048, 256, 0.01),
    (4096, 4096, 1024, 0.01), (4096, 4096, 1024, 0.05), (4096, 4096, 1024, 0.10), (4096, 4096, 1024, 0.20),
    (16384, 16384, 256, 0.01), (65536, 1024, 64, 0.01),
]  # fmt: skip
MEMORY = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second, data sheet
SHARED_BYTES = 227 << 10
LAUNCHES, LAUNCH = 6, 2.5e-6
# Dense operations a second (data sheet, SXM), and the share of them that large products usually reach.
DENSE, SHARE = {"fp32": 67e12, "TF32": 495e12, "bf16": 989e12}, 0.75


LAYERS = [(1024, 128), (2048, 256), (4096, 1024)]  # square ones, and the batch
PRECISIONS = {"fp32": {"element": 4}, "TF32": {"element": 4, "tf32": True}, "bf16, fp16": {"element": 2}}


def microseconds(inputs: int, outputs: int, batch: int, density: float) -> list[float]:
    """Sparse on each device, and dense in each precision."""
    connections = round(inputs * outputs * density)
    times = []
    for rate in MEMORY.values():
        plan = cuda_plan(inputs, outputs, connections, batch, shared_bytes=SHARED_BYTES, memory_rate=rate)
        times.append(sum(product["seconds"] for product in plan.values()) + LAUNCHES * LAUNCH)
    times += [6 * inputs * outputs * batch / (SHARE * rate) + 3 * LAUNCH for rate in DENSE.values()]
    return [1e6 * time for time in times]


def table() -> str:
    """The table, as Markdown."""
    lines = ["| layer | batch | density | " + " | ".join([*MEMORY, *(f"dense {name}" for name in DENSE)]) + " |"]
    lines.append("|---" * (3 + len(MEMORY) + len(DENSE)) + "|")
    for inputs, outputs, batch, density in SHAPES:
        times = (f"{time:,.0f}" for time in microseconds(inputs, outputs, batch, density))
        lines.append(f"| {inputs} x {outputs} | {batch} | {100 * density:g} % | " + " | ".join(times) + " |")
    return "\n".join(lines)


def crossover(neurons: int, batch: int, **precision: int) -> float:
    """The density from which on the model expects the three products to take less time as dense ones."""
    low, high = 1e-4, 1.0
    while high / low > 1.001:
        density = (low * high) ** 0.5
        plan = cuda_plan(neurons, neurons, round(density * neurons**2), batch, **precision).values()
        if sum(product["dense_seconds"] for product in plan) < sum(product["seconds"] for product in plan):
            high = density
        else:
            low = density
    return high


def table_of_crossovers() -> str:
    """By layer and precision, as Markdown."""
    lines = ["| layer | batch | " + " | ".join(PRECISIONS) + " |", "|---" * (2 + len(PRECISIONS)) + "|"]
    for neurons, batch in LAYERS:
        found = (f"{100 * crossover(neurons, batch, **precision):.2g} %" for precision in PRECISIONS.values())
        lines.append(f"| {neurons} x {neurons} | {batch} | " + " | ".join(found) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(), table_of_crossovers(), sep="\n\n")
