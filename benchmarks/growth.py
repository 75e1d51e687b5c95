"""With which values new connections begin: 0 or the spread of the layer's values, under SET and RigL.

    python benchmarks/growth.py --root FOLDER --out FOLDER [--tasks digits fashion-mnist text] [--seeds 5]

Three tasks: scikit-learn's digits (64-256-256-10), 10,000 images of Fashion-MNIST (`--root` holds its files;
784-256-256-10), and a transformer of two blocks that predicts the next character of Python's language reference (which
comes with the interpreter, `pydoc_data.topics`). Hidden layers are sparse. Every 50 steps until three quarters of
the training SET rewires 15 %, RigL a share that falls from 30 % to 0 as half a cosine. The two starts have equal seeds:
the same first pattern, values and batches. Scores are taken on data that are never trained on.

Finished runs are kept in OUT/growth.jsonl and are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
from torch import nn

import dendnorm
from dendnorm import grow, info, schedules
from dendnorm.lab import data

STARTS = ("zero", "matched")
RULES = ("SET", "RigL")
EVERY = 50
WINDOW, CHANNELS, HEADS = 64, 96, 4
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """What is trained, on what.

    Attributes:
        model: makes the network, sparse hidden layers and all, from the name of the norm and a seed.
        batches: training batches, without an end, from a seed.
        held_out: one batch for the scores.
        rates: of "adamw", and of "sgd" with momentum 0.9 where it is tried.
    """

    model: Callable[[str, int], nn.Module]
    batches: Callable[[int], Iterator[Batch]]
    held_out: Batch
    steps: int
    rates: dict[str, float]


def perceptron(inputs: int, density: float) -> Callable[[str, int], nn.Module]:
    def model(norm: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        first = dendnorm.SparseLinear(inputs, 256, density, norm=norm, seed=2 * seed)
        second = dendnorm.SparseLinear(256, 256, density, norm=norm, seed=2 * seed + 1)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(256, 10))

    return model


def images(name: str, root: Path | None, examples: int, density: float, steps: int, rates: dict[str, float]) -> Task:
    loaded = data.load(name, root)
    train, test = (part.float() * loaded.scale for part in (loaded.train_inputs[:examples], loaded.test_inputs))
    train, test = ((part - train.mean()) / train.std() for part in (train, test))
    targets = loaded.train_targets[:examples]

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for rows in torch.randperm(len(targets), generator=generator).split(128)[:-1]:
                yield train[rows], targets[rows]

    held_out = test[:2000], loaded.test_targets[:2000]
    return Task(perceptron(loaded.features, density), batches, held_out, steps, rates)


class Block(nn.Module):
    """Pre-norm: causal attention, then two layers with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.qkv, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.up, self.down = nn.Linear(CHANNELS, 4 * CHANNELS), nn.Linear(4 * CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, window, _ = x.shape
        parts = self.qkv(self.before(x)).view(batch, window, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
        return x + self.down(nn.functional.gelu(self.up(self.after(x))))


class Characters(nn.Module):
    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, CHANNELS)
        self.position = nn.Parameter(torch.randn(WINDOW, CHANNELS) / 10)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, symbols)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.blocks(self.embedding(symbols) + self.position))
        return self.head(x).flatten(0, 1)


def text(density: float, steps: int, rates: dict[str, float]) -> Task:
    written = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    symbols = {symbol: number for number, symbol in enumerate(sorted(set(written)))}
    whole = torch.tensor([symbols[symbol] for symbol in written])
    train, test = whole[: len(whole) * 9 // 10], whole[len(whole) * 9 // 10 :]

    def windows(source: torch.Tensor, starts: torch.Tensor) -> Batch:
        taken = source[starts[:, None] + torch.arange(WINDOW + 1)]
        return taken[:, :-1], taken[:, 1:].flatten()

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield windows(train, torch.randint(len(train) - WINDOW, (16,), generator=generator))

    def model(norm: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        network = Characters(len(symbols))
        # Fresh layers, not the largest of the dense weights: those are what one has who trains sparse from the start.
        for block in network.blocks:
            for index, (name, linear) in enumerate(list(block.named_children())):
                if isinstance(linear, nn.Linear):
                    sizes = linear.in_features, linear.out_features
                    setattr(block, name, dendnorm.SparseLinear(*sizes, density, norm=norm, seed=9 * seed + index))
        return network

    held_out = windows(test, torch.arange(0, len(test) - WINDOW - 1, len(test) // 64)[:64])
    return Task(model, batches, held_out, steps, rates)


@torch.no_grad()
def score(model: nn.Module, held_out: Batch) -> tuple[float, float]:
    """Loss and accuracy."""
    outputs = model(held_out[0])
    right = (outputs.argmax(1) == held_out[1]).double().mean().item()
    return nn.functional.cross_entropy(outputs, held_out[1]).item(), right


def train(task: Task, rule: str, kind: str, norm: str, start: str, seed: int) -> dict[str, Any]:
    """ "loss" and "accuracy" at the end; "lost", what a rewiring adds to the loss, mean over rewirings."""
    model = task.model(norm, seed)
    groups = dendnorm.param_groups(model, lr=task.rates[kind], density_scaled=True, optimizer=kind.removesuffix("w"))
    optimizer = torch.optim.AdamW(groups) if kind == "adamw" else torch.optim.SGD(groups, momentum=0.9)
    last = task.steps * 3 // 4
    if rule == "SET":
        rewire = dendnorm.SET(model, optimizer, 0.15, seed, grow=grow.Random(start=start))
    else:
        share = schedules.Cosine(0.3, last // EVERY + 1)
        rewire = dendnorm.SET(model, optimizer, share, seed, grow=grow.Gradient(start=start))
    lost = []
    for step, (inputs, targets) in enumerate(itertools.islice(task.batches(seed), task.steps), 1):
        now = step % EVERY == 0 and step <= last
        optimizer.zero_grad()
        with rewire.observe() if now and rule == "RigL" else contextlib.nullcontext():
            nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        if now:
            before, _ = score(model, task.held_out)
            rewire.step()
            lost.append(score(model, task.held_out)[0] - before)
    final, right = score(model, task.held_out)
    return {"loss": final, "accuracy": right, "lost": statistics.fmean(lost)}


def spread(values: list[float], digits: int) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of the Fashion-MNIST files, or the folder that holds it")
    parser.add_argument("--out", default="growth", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["digits", "fashion-mnist", "text"])
    parser.add_argument("--norms", nargs="+", default=["l0", "none"])
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "sgd"])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "growth.jsonl"
    lines = kept.read_text().splitlines() if kept.exists() else []
    done = {tuple(entry["cell"]): entry for entry in map(json.loads, lines)}
    makers: dict[str, Callable[[], Task]] = {
        "digits": lambda: images("digits", None, 1437, 0.1, 600, {"adamw": 2.0**-9, "sgd": 2.0**-6}),
        "fashion-mnist": lambda: images("fashion-mnist", options.root, 10_000, 0.05, 600,
                                        {"adamw": 2.0**-9, "sgd": 2.0**-6}),
        "text": lambda: text(0.1, 400, {"adamw": 2.0**-9}),
    }  # fmt: skip
    print(f"{info.processor()}, {options.seeds} seeds\n")
    print("| task, optimizer, norm | rule | held-out loss from 0 | matched | 0 less matched, by seed"
          " | accuracy, %, from 0 | matched | a rewiring adds to the loss, from 0 | matched |")  # fmt: skip
    print("|---" * 9 + "|")
    for name in options.tasks:
        task = makers[name]()
        kinds = [kind for kind in options.optimizers if kind in task.rates]
        for kind, norm, rule in itertools.product(kinds, options.norms, RULES):
            runs: dict[str, list[dict[str, Any]]] = {start: [] for start in STARTS}
            for seed, start in itertools.product(range(options.seeds), STARTS):
                cell = (name, rule, kind, norm, start, seed)
                if cell not in done:
                    began = time.perf_counter()
                    done[cell] = {"cell": cell, **train(task, rule, kind, norm, start, seed)}
                    done[cell]["seconds"] = round(time.perf_counter() - began, 2)
                    with kept.open("a") as file:
                        file.write(json.dumps(done[cell]) + "\n")
                runs[start].append(done[cell])
            apart = [zero["loss"] - matched["loss"] for zero, matched in zip(*runs.values(), strict=True)]
            loss, right, lost = (
                " | ".join(spread([scale * run[key] for run in runs[start]], digits) for start in STARTS)
                for key, scale, digits in (("loss", 1, 3), ("accuracy", 100, 1), ("lost", 1, 3))
            )
            print(f"| {name}, {kind}, {norm} | {rule} | {loss} | {spread(apart, 3)} | {right} | {lost} |", flush=True)


if __name__ == "__main__":
    main()
