"""One training epoch of the paper's network with a sparse hidden layer, and the same loop with nn.Linear in its place.

    python benchmarks/epoch_time.py [--norm l0] [--steps 6000] [--repeats 5]

The two take turns in pieces of 500 steps, so that a busy moment of the machine hits both. Random pictures: their values
do not change the time. Prints the seconds of an epoch (median of the repeats, and their range) and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

import dendnorm
from dendnorm import info

PIECE = 500


def network(hidden: nn.Module) -> nn.Sequential:
    return nn.Sequential(hidden, nn.Sigmoid(), nn.Linear(100, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--norm", default="l0")
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    inputs = torch.rand(PIECE, arguments.batch, 784)
    targets = torch.randint(10, (PIECE, arguments.batch))
    models = {
        "sparse": network(dendnorm.SparseLinear(784, 100, density=arguments.density, norm=arguments.norm, seed=0)),
        "nn.Linear": network(nn.Linear(784, 100)),
    }
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.05) for name, model in models.items()}

    def piece(name: str) -> float:
        model, optimizer = models[name], optimizers[name]
        start = time.perf_counter()
        for x, y in zip(inputs, targets, strict=True):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
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
    for name, times in seconds.items():
        print(f"{name:10} {statistics.median(times):.3f} s per epoch ({min(times):.3f} to {max(times):.3f})")
    ratios = [dense / sparse for dense, sparse in zip(seconds["nn.Linear"], seconds["sparse"], strict=True)]
    print(f"nn.Linear / sparse: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
