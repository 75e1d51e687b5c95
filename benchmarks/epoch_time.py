"""One training epoch of the paper's network with a sparse, a dense and a masked hidden layer, in turns.

    python benchmarks/epoch_time.py [--norm l0] [--norm none] [--steps 6000] [--repeats 5] [--threads 1]

The loop is the one of `dendnorm train`. The contenders take turns in pieces of 500 steps, so that a busy moment of the
machine hits all. Random pictures: their values do not change the time. Prints the seconds of an epoch (median of the
repeats, and their range), the ratios of the turns, and where the time of a step of the first norm goes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import dendnorm
from dendnorm import info
from dendnorm.lab import bench, train
from dendnorm.lab.settings import Settings

PIECE = 500
WARM_UP = 200


def network(hidden: nn.Module) -> nn.Sequential:
    return nn.Sequential(hidden, nn.Sigmoid(), nn.Linear(100, 10))


def contenders(norms: list[str], density: float) -> dict[str, nn.Sequential]:
    sparse = {norm: dendnorm.SparseLinear(784, 100, density=density, norm=norm, seed=0) for norm in norms}
    models = {f"sparse, {norm}": network(layer) for norm, layer in sparse.items()}
    models["dense"] = network(bench.CONTENDERS["dense"](sparse[norms[0]]))
    models["masked"] = network(bench.CONTENDERS["masked"](sparse[norms[0]]))
    return models


def parts(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Microseconds of the parts of a step: least of five rounds."""
    descent = train.Descent(model, Settings())
    parameters = list(model.parameters())
    hidden = model[0]
    signal = torch.rand_like(hidden(x))

    def least(part: Callable[[], object]) -> float:
        for _ in range(WARM_UP):
            part()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(PIECE):
                part()
            times.append((time.perf_counter() - start) / PIECE * 1e6)
        return min(times)

    def cost() -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y)

    return {
        "hidden layer, forward": least(lambda: hidden(x)),
        "hidden layer, forward and backward": least(
            lambda: torch.autograd.grad(hidden(x), hidden.parameters(), signal)
        ),
        "network and cost, forward": least(cost),
        "network and cost, forward and backward": least(lambda: torch.autograd.grad(cost(), parameters)),
        "whole step": least(lambda: descent.step(cost(), 1e-9)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--norm", action="append", dest="norms", help="repeat for more (default: l0 and none)")
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="as a trial of `dendnorm paper` has (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    inputs = torch.rand(PIECE, arguments.batch, 784)
    targets = torch.randint(10, (PIECE, arguments.batch))
    models = contenders(arguments.norms or ["l0", "none"], arguments.density)
    descents = {name: train.Descent(model, Settings()) for name, model in models.items()}

    def piece(name: str) -> float:
        model, descent = models[name], descents[name]
        start = time.perf_counter()
        for x, y in zip(inputs, targets, strict=True):
            descent.step(nn.functional.cross_entropy(model(x), y), 0.05)
        return time.perf_counter() - start

    for name in models:
        piece(name)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(arguments.repeats):
        spent = dict.fromkeys(models, 0.0)
        for _ in range(max(1, arguments.steps // PIECE)):
            for name in models:
                spent[name] += piece(name)
        for name in models:
            seconds[name].append(spent[name])
    print(info.report())
    first = next(iter(models))
    for name, times in seconds.items():
        ratios = [other / mine for other, mine in zip(times, seconds[first], strict=True)]
        print(
            f"{name:14} {statistics.median(times):.3f} s per epoch ({min(times):.3f} to {max(times):.3f}),"
            f" {statistics.median(ratios):.2f} times {first} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    for name in (first, "dense", "masked"):
        print(f"microseconds of a step, {name}")
        for part, micros in parts(models[name], inputs[0], targets[0]).items():
            print(f"  {part:40} {micros:7.1f}")


if __name__ == "__main__":
    main()
