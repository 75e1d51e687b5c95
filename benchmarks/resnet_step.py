"""One training step of ResNet-18 (224 x 224, SGD with momentum), dense and with sparse convolutions, in turns.

    python benchmarks/resnet_step.py [--batch 32] [--density 0.1] [--size 224] [--rounds 5] [--threads 2]

Dense in both orders of memory; sparse with every convolution but the first at --density, in a Slab, without a norm and
with dendritic normalisation. Random images and weights. Prints milliseconds (median, least), how many times faster than
the better dense one each is turn by turn, and the bytes of parameters, gradients, optimizer and index tables.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import dendnorm
from dendnorm import info

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from resnet_cifar import Block, held_bytes

DENSE = ("dense", "dense, channels_last")


def resnet18() -> nn.Sequential:
    """K. He et al, "Deep residual learning for image recognition", 2016, Table 1."""
    start = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, inputs = [], 64
    for outputs in (64, 128, 256, 512):
        blocks += [Block(inputs, outputs, 1 if outputs == 64 else 2), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*start, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def contenders(density: float) -> dict[str, nn.Module]:
    models: dict[str, nn.Module] = {name: resnet18() for name in DENSE}
    models["dense, channels_last"].to(memory_format=torch.channels_last)
    for norm in (None, "l0"):
        model = resnet18()
        dendnorm.sparsify(model, density, types=[nn.Conv2d], skip=["0"], norm=norm)
        models[f"dendnorm, {norm or 'none'}"] = dendnorm.Slab(model)
    return models


def stepping(name: str, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[Callable, Callable]:
    optimizer = torch.optim.SGD(dendnorm.param_groups(model, 1e-4), lr=0.01, momentum=0.9)
    order = torch.channels_last if name == "dense, channels_last" else torch.contiguous_format
    x = images.contiguous(memory_format=order)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    def held() -> int:
        nn.functional.cross_entropy(model(x), labels).backward()
        return held_bytes(model, optimizer)

    return step, held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--size", type=int, default=224, help="rows and columns of the images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    images = torch.randn(given.batch, 3, given.size, given.size)
    labels = torch.randint(1000, (given.batch,))
    steps = {name: stepping(name, model, images, labels) for name, model in contenders(given.density).items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(given.rounds + 1):
        for name, (step, _) in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    print(f"{info.processor()}, {given.threads} threads, torch {torch.__version__}; batch {given.batch}, {given.size} x"
          f" {given.size}, density {given.density:g}, {given.rounds} turns")  # fmt: skip
    best = [min(pair) for pair in zip(*(times[name] for name in DENSE), strict=True)]
    sizes = {name: held() for name, (_, held) in steps.items()}
    for name, taken in times.items():
        ratios = [dense / ours for dense, ours in zip(best, taken, strict=True)]
        print(
            f"{name}: {statistics.median(taken):.0f} ms (least {min(taken):.0f});"
            f" {statistics.median(ratios):.2f} times faster ({min(ratios):.2f}-{max(ratios):.2f});"
            f" {sizes[name] / 2**20:.1f} MiB, {sizes[name] / sizes['dense']:.3f} of dense"
        )


if __name__ == "__main__":
    main()
