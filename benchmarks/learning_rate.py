"""Which learning rate suits a sparse layer: the best one for each density, norm, width and optimizer, and nn.Linear's.

    python benchmarks/learning_rate.py --root FOLDER --out FOLDER [--widths 256] [--powers 0 1] [--seeds 2]

Trains 784-M-M-10 with ReLU units on minibatches of 128 of Fashion-MNIST (`--root` holds its files), the two hidden
layers sparse. No image comes twice, so a step's training loss is one on held-out images; a rate is judged by its mean
over the last fifth of the steps, and that by its mean over seeds. Rates are powers of 2: three about the place where
the best is expected, and more as long as the best of them is at the edge.

The power is that of 1 / density in the rate of sparse values, `dendnorm.param_groups(density_scaled=True, power=...)`;
with 0 there is one plain rate for all parameters.
Finished cells are kept in OUT/learning_rate.jsonl and are not run again; `--table` only prints what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import dendnorm
from dendnorm import info
from dendnorm.lab import data

DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01)
NORMS = ("l0", "none", "weight_norm")
EXPECTED = {"sgd": -2, "adamw": -8}
BATCH = 128
Losses = Callable[[int], list[float]]


class Arm(NamedTuple):
    """One network and the way that it is given its rate; `density` None is nn.Linear."""

    width: int
    optimizer: str
    density: float | None
    norm: str
    power: float


def network(arm: Arm, seed: int) -> nn.Module:
    """784-M-M-10; dense hidden layers where there is no density. Hidden values start with variance 1 / n everywhere."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise((784, arm.width, arm.width))):
        if arm.density is None:
            layer: nn.Module = nn.Linear(inputs, outputs)
            nn.init.normal_(layer.weight, std=inputs**-0.5)
            nn.init.zeros_(layer.bias)
        else:
            layer = dendnorm.SparseLinear(inputs, outputs, arm.density, norm=arm.norm, seed=10 * seed + index)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(arm.width, 10))


def final_loss(arm: Arm, rate: float, inputs: torch.Tensor, targets: torch.Tensor, steps: int, seed: int) -> float:
    """Mean loss of the last fifth of the steps, each before its step; infinite where it diverged."""
    model = network(arm, seed)
    scaled, kind = arm.power != 0, arm.optimizer.removesuffix("w")
    groups = dendnorm.param_groups(model, lr=rate, density_scaled=scaled, optimizer=kind, power=arm.power)
    optimizer = torch.optim.SGD(groups) if arm.optimizer == "sgd" else torch.optim.AdamW(groups)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    losses = []
    for rows in order[: steps * BATCH].view(steps, BATCH):
        loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or losses[-1] > 50:
            return math.inf
    return statistics.fmean(losses[-max(1, steps // 5) :])


def best(losses: Losses, start: int) -> int:
    """The exponent of the lowest mean loss: extends from three about `start` while the lowest is at the edge."""
    low, high = start - 1, start + 1
    while True:
        chosen = min(range(low, high + 1), key=lambda exponent: statistics.fmean(losses(exponent)))
        if low < chosen < high:
            return chosen
        low, high = (low - 1, high) if chosen == low else (low, high + 1)


def vertex(losses: Losses, chosen: int) -> list[float]:
    """For each seed, where the parabola through the three losses about the best has its lowest point; none at inf."""
    points = []
    for left, middle, right in zip(losses(chosen - 1), losses(chosen), losses(chosen + 1), strict=True):
        curvature = left - 2 * middle + right
        if math.isfinite(curvature) and curvature > 0:
            points.append(chosen + min(1.0, max(-1.0, (left - right) / (2 * curvature))))
    return points


def expected(arm: Arm, chosen: dict[Arm, int]) -> int:
    """Where to look first: at the best rate of what is most alike."""

    def alike(seen: Arm) -> tuple[bool, ...]:
        same = seen.power == arm.power
        return same and seen.density == arm.density, same and seen.norm == arm.norm, seen.width == arm.width

    known = [seen for seen in chosen if seen.optimizer == arm.optimizer]
    # Of equals the latest, which is the one with the nearest density.
    return chosen[max(reversed(known), key=alike)] if known else EXPECTED[arm.optimizer]


def arms(options: argparse.Namespace) -> list[Arm]:
    found = []
    for width, kind in itertools.product(options.widths, options.optimizers):
        found.append(Arm(width, kind, None, "nn.Linear", 0.0))
        for power, norm, density in itertools.product(options.powers, options.norms, options.densities):
            if power == 0 or density < 1:  # with all connections every power is the same
                found.append(Arm(width, kind, density, norm, power))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the Fashion-MNIST files, or the folder that holds it")
    parser.add_argument("--out", default="learning-rate", type=Path)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--densities", type=float, nargs="+", default=list(DENSITIES))
    parser.add_argument("--norms", nargs="+", default=list(NORMS))
    parser.add_argument("--optimizers", nargs="+", default=list(EXPECTED), choices=list(EXPECTED))
    parser.add_argument("--powers", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--steps", type=int, default=300, help=f"of {BATCH} images; at most 468 (default: 300)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true", help="train nothing, print the arms that are finished")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "learning_rate.jsonl"
    lines = kept.read_text().splitlines() if kept.exists() else []
    done = {tuple(entry["cell"]): entry["loss"] for entry in map(json.loads, lines)}
    loaded = data.load("fashion-mnist", options.root)
    inputs = loaded.train_inputs.float().mul_(loaded.scale)
    inputs = (inputs - inputs.mean()) / inputs.std()

    def losses_of(arm: Arm) -> Losses:
        def losses(exponent: int) -> list[float]:
            cells = [(*arm, exponent, seed, options.steps) for seed in range(options.seeds)]
            for seed, cell in enumerate(cells):
                if cell not in done:
                    if options.table:
                        raise LookupError
                    began = time.perf_counter()
                    done[cell] = final_loss(arm, 2.0**exponent, inputs, loaded.train_targets, options.steps, seed)
                    entry = {"cell": cell, "loss": done[cell], "seconds": round(time.perf_counter() - began, 2)}
                    with kept.open("a") as file:
                        file.write(json.dumps(entry) + "\n")
            return [done[cell] for cell in cells]

        return losses

    chosen: dict[Arm, int] = {}
    for arm in arms(options):
        try:
            chosen[arm] = best(losses_of(arm), expected(arm, chosen))
        except LookupError:
            continue
    report(chosen, losses_of, options)


def report(chosen: dict[Arm, int], losses_of: Callable[[Arm], Losses], options: argparse.Namespace) -> None:
    print(f"{info.processor()}, {options.steps} steps, {options.seeds} seeds")

    def cell(arm: Arm) -> str:
        if arm not in chosen:
            return ""
        losses = losses_of(arm)
        at = vertex(losses, chosen[arm])
        exact = f"{statistics.fmean(at):.1f}, " if at else ""
        if len(at) > 1:
            exact = f"{statistics.fmean(at):.1f} ± {statistics.stdev(at):.1f}, "
        return f"2^{chosen[arm]} ({exact}{statistics.fmean(losses(chosen[arm])):.3f})"

    for kind in options.optimizers:
        print(f"\n| {kind}: width, power | norm | " + " | ".join(f"{100 * d:g} %" for d in options.densities) + " |")
        print("|---" * (2 + len(options.densities)) + "|")
        for width in options.widths:
            dense = cell(Arm(width, kind, None, "nn.Linear", 0.0))
            print(f"| {width} | `nn.Linear` | {dense} |" + " |" * (len(options.densities) - 1))
            for power, norm in itertools.product(options.powers, options.norms):
                row = [cell(Arm(width, kind, density, norm, 0.0 if density == 1 else power))
                       for density in options.densities]  # fmt: skip
                print(f"| {width}, {power:g} | {norm} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
