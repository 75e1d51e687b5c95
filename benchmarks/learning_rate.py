"""Which learning rate suits a sparse layer: the best one for each density, norm, width and optimizer, and nn.Linear's.

    python benchmarks/learning_rate.py --root FOLDER --out FOLDER [--widths 256 1024] [--steps 300] [--threads 2]

Trains 784-M-M-10 with ReLU units on minibatches of 128 of Fashion-MNIST (`--root` holds its files), the two hidden
layers sparse, at every rate of a grid of factors of 2, and takes the rate of the lowest mean training loss over the
last fifth of the steps; the mean over seeds decides. Finished cells are kept in OUT/learning_rate.jsonl, and are not
run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from pathlib import Path

import torch
from torch import nn

import dendnorm
from dendnorm import info
from dendnorm.lab import data

DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01)
NORMS = ("l0", "none", "weight_norm")
RATES = {
    "sgd": [2.0**k for k in range(-7, 4)],
    "adamw": [2.0**k for k in range(-14, -4)],
}


def network(width: int, density: float | None, norm: str, seed: int) -> nn.Module:
    """784-M-M-10; dense hidden layers where there is no density. All start with variance 1 / n, or nn.Linear's own."""
    torch.manual_seed(seed)
    sizes = (784, width, width)
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        if density is None:
            layer: nn.Module = nn.Linear(inputs, outputs)
            nn.init.normal_(layer.weight, std=inputs**-0.5)
            nn.init.zeros_(layer.bias)
        else:
            layer = dendnorm.SparseLinear(inputs, outputs, density, norm=norm, seed=10 * seed + index)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def final_loss(model: nn.Module, kind: str, rate: float, inputs: torch.Tensor, targets: torch.Tensor, steps: int,
               seed: int) -> float:  # fmt: skip
    """Mean training loss of the last fifth of the steps; infinite where it diverged."""
    groups = dendnorm.param_groups(model)
    optimizer = torch.optim.SGD(groups, lr=rate) if kind == "sgd" else torch.optim.AdamW(groups, lr=rate)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(targets), (128,), generator=generator)
        loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or losses[-1] > 50:
            return math.inf
    return statistics.fmean(losses[-max(1, steps // 5) :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the Fashion-MNIST files, or the folder that holds it")
    parser.add_argument("--out", default="learning-rate", type=Path)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--densities", type=float, nargs="+", default=list(DENSITIES))
    parser.add_argument("--norms", nargs="+", default=list(NORMS))
    parser.add_argument("--optimizers", nargs="+", default=list(RATES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "learning_rate.jsonl"
    done = {}
    if kept.exists():
        for line in kept.read_text().splitlines():
            entry = json.loads(line)
            done[tuple(entry["cell"])] = entry["loss"]
    loaded = data.load("fashion-mnist", options.root)
    inputs, targets = loaded.train_inputs.float().mul_(loaded.scale), loaded.train_targets
    inputs = (inputs - inputs.mean()) / inputs.std()
    columns = [(None, "nn.Linear"), *itertools.product(options.densities, options.norms)]
    for width, kind, (density, norm) in itertools.product(options.widths, options.optimizers, columns):
        for rate, seed in itertools.product(RATES[kind], range(options.seeds)):
            cell = (width, kind, density, norm, rate, seed, options.steps)
            if cell not in done:
                model = network(width, density, norm, seed)
                done[cell] = final_loss(model, kind, rate, inputs, targets, options.steps, seed)
                with kept.open("a") as file:
                    file.write(json.dumps({"cell": cell, "loss": done[cell]}) + "\n")
    print(f"{info.processor()}, {options.steps} steps, {options.seeds} seeds\n")
    print("| width | optimizer | norm | " + " | ".join(f"{100 * d:g} %" for d in options.densities) + " |")
    print("|---" * (3 + len(options.densities)) + "|")

    def best(width: int, kind: str, density: float | None, norm: str) -> str:
        def mean(rate: float) -> float:
            return statistics.fmean(done[width, kind, density, norm, rate, seed, options.steps]
                                    for seed in range(options.seeds))  # fmt: skip

        rate = min(RATES[kind], key=mean)
        return f"2^{round(math.log2(rate))} ({mean(rate):.3f})"

    for width, kind in itertools.product(options.widths, options.optimizers):
        for norm in options.norms:
            cells = [best(width, kind, density, norm) for density in options.densities]
            print(f"| {width} | {kind} | {norm} | " + " | ".join(cells) + " |")
        print(f"| {width} | {kind} | `nn.Linear` | {best(width, kind, None, 'nn.Linear')} |" + " |" * (
            len(options.densities) - 1))  # fmt: skip


if __name__ == "__main__":
    main()
