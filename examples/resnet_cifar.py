"""ResNet-18 (the CIFAR form) on CIFAR-10: dense, and with 90 and 95 % of its weights left out from the start.

    python examples/resnet_cifar.py --root DIR --epochs 30 --out runs/resnet

DIR holds CIFAR-10's binary files, or train/<class>/*.jpg and test/<class>/*.jpg. Every convolution but the first is
sparse (ERK, with density in all of them together), and the head stays dense, as is usual. SET and RigL rewire during
three quarters of the training; "l0" is dendritic normalisation, "none" its control. All runs see the same batches,
with flips and shifts, SGD with momentum and one cosine of the rate. After each epoch a run is saved in --out, and the
same command goes on from there; results.md there is the table, which is printed at the end, too.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import dendnorm
from dendnorm.lab import data

RUNS = {
    "dense": (None, None, None),
    **{
        f"{rule} {norm} {100 - round(100 * density)}%": (density, rule, norm)
        for density in (0.1, 0.05) for rule in ("SET", "RigL") for norm in ("l0", "none")
    },
}  # fmt: skip


class Block(nn.Module):
    """Two convolutions of 3 x 3 on a residual path."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


def resnet18(width: int) -> nn.Module:
    """K. He et al, "Deep residual learning for image recognition", 2016, with a first convolution for small images."""
    blocks: list[nn.Module] = []
    inputs = width
    for stage in range(4):
        for index in range(2):
            outputs = width << stage
            blocks.append(Block(inputs, outputs, 2 if stage and not index else 1))
            inputs = outputs
    start = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*start, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def made(name: str, width: int, seed: int) -> nn.Module:
    density, _, norm = RUNS[name]
    torch.manual_seed(seed)
    model = resnet18(width)
    if density is None:
        return model.to(memory_format=torch.channels_last)
    shares = dendnorm.densities(model, density, "erk", types=[nn.Conv2d], skip=["0"])
    for number, (place, share) in enumerate(shares.items()):
        parent, _, child = place.rpartition(".")
        conv: Any = model.get_submodule(place)
        fresh = dendnorm.SparseConv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False,
            nnz=round(share * conv.weight.numel()), norm=norm, seed=1000 * seed + number,
        )  # fmt: skip
        setattr(model.get_submodule(parent), child, fresh)
    return dendnorm.Slab(model)


def images(rows: torch.Tensor, scale: float) -> torch.Tensor:
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    deviation = torch.tensor([0.247, 0.2435, 0.2616]).view(3, 1, 1)
    return (rows.view(-1, 3, 32, 32).float() * scale - mean) / deviation


def shifted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flipped with probability 1/2, and shifted by up to 4 pixels, each image by its own."""
    count = len(x)
    flip = torch.rand(count, generator=generator) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    down, across = torch.randint(0, 9, (2, count, 1), generator=generator)
    rows = (down + torch.arange(32)).view(count, 1, 32, 1)
    columns = (across + torch.arange(32)).view(count, 1, 1, 32)
    samples, channels = torch.arange(count).view(-1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1)
    return F.pad(x, (4, 4, 4, 4))[samples, channels, rows, columns]


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Of parameters, their gradients, the optimizer's state, and all index tables."""
    tensors = [each for parameter in model.parameters() for each in (parameter, parameter.grad) if each is not None]
    tensors += [each for state in optimizer.state.values() for each in state.values() if isinstance(each, torch.Tensor)]
    for module in model.modules():
        tensors += [*module.pattern] if isinstance(module, dendnorm.SparseConv2d) else []
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def accuracy(model: nn.Module, rows: torch.Tensor, targets: torch.Tensor, scale: float, batch: int) -> float:
    model.eval()
    parts = zip(rows.split(batch), targets.split(batch), strict=True)
    right = sum(int((model(images(x, scale)).argmax(1) == y).sum()) for x, y in parts)
    return right / len(targets)


def run(name: str, sets: data.DataSet, options: argparse.Namespace) -> dict[str, Any]:
    """One training, from where its checkpoint left off; what it came to after each epoch."""
    model, (_, rule, _) = made(name, options.width, options.seed), RUNS[name]
    optimizer = torch.optim.SGD(
        dendnorm.param_groups(model, options.decay), lr=options.rate, momentum=0.9, nesterov=True
    )
    examples = len(sets.train_targets) if options.examples is None else options.examples
    count = examples // options.batch
    steps = count * options.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    stop = max(3 * steps // 4, options.every + 1)
    kinds: dict[str, Any] = {"SET": dendnorm.SET, "RigL": dendnorm.RigL}
    falling = dendnorm.schedules.Cosine(0.3, max(stop // options.every, 1))  # RigL has it of its own
    rewire = None
    if rule is not None:
        zeta = falling if rule == "SET" else 0.3
        rewire = kinds[rule](model, optimizer, zeta, every=options.every, stop=stop, seed=options.seed)
    path = Path(options.out) / f"{name.replace(' ', '_').replace('%', '')}.dendnorm"
    history: list[dict[str, float]] = []
    settings = {key: value for key, value in vars(options).items() if key not in ("root", "runs", "out", "until")}
    if path.exists():
        extra = dendnorm.load(path, model, optimizer, rewire, adopt_pattern=True)
        if extra["settings"] != settings:
            raise SystemExit(f"{path} is of other settings, {extra['settings']}: take another --out")
        history = extra["history"]
        schedule.load_state_dict(extra["schedule"])
    for epoch in range(len(history), min(options.until or options.epochs, options.epochs)):
        generator = torch.Generator().manual_seed(options.seed + epoch)
        order = torch.randperm(len(sets.train_targets), generator=generator)[: count * options.batch]
        model.train()
        total, seconds = 0.0, 0.0
        for index in order.split(options.batch):
            x = shifted(images(sets.train_inputs[index], sets.scale), generator)
            start = time.perf_counter()  # of the training step alone: reading costs every run the same
            loss = F.cross_entropy(model(x), sets.train_targets[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            seconds += time.perf_counter() - start
            total += loss.item()
        reached = accuracy(model, sets.test_inputs, sets.test_targets, sets.scale, options.batch)
        history.append({"accuracy": reached, "loss": total / max(count, 1), "seconds": seconds})
        extra = {"history": history, "schedule": schedule.state_dict(), "settings": settings}
        dendnorm.save(path, model, optimizer, rewire, extra)
        print(f"{name}, epoch {epoch + 1}: {100 * reached:.2f} %, loss {total / max(count, 1):.3f},"
              f" {seconds:.0f} s", flush=True)  # fmt: skip
    weights = sum(parameter.numel() for parameter in model.parameters())
    return {"history": history, "parameters": weights, "bytes": held_bytes(model, optimizer)}


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| run | accuracy | best | loss | seconds per epoch | parameters | weights, gradients, state, indices |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, found in results.items():
        history = found["history"]
        seconds = sorted(epoch["seconds"] for epoch in history)[len(history) // 2]
        best = max(epoch["accuracy"] for epoch in history)
        lines.append(
            f"| {name} | {100 * history[-1]['accuracy']:.2f} % | {100 * best:.2f} % | {history[-1]['loss']:.3f} |"
            f" {seconds:.1f} | {found['parameters']:,} | {found['bytes'] / 2**20:.1f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where CIFAR-10 is")
    parser.add_argument("--epochs", type=int, default=30)
    names = ", ".join(f'"{name}"' for name in RUNS).replace("%", "%%")
    parser.add_argument("--until", type=int, help="stop after this epoch, to go on at another time")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="RUN", help=names)
    parser.add_argument("--out", default="resnet_cifar")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=5e-4)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--every", type=int, default=100, help="steps between rewirings")
    parser.add_argument("--examples", type=int, help="of the training set, drawn in each epoch, and of the test set")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    sets = data.load("cifar10", options.root)
    if options.examples is not None:
        some = torch.randperm(len(sets.test_targets), generator=torch.Generator().manual_seed(0))[: options.examples]
        sets = replace(sets, test_inputs=sets.test_inputs[some], test_targets=sets.test_targets[some])
    results = {name: run(name, sets, options) for name in options.runs}
    head = f"ResNet-18 of width {options.width} on CIFAR-10: {options.epochs} epochs, batches of {options.batch}"
    text = f"{head}, {torch.get_num_threads()} threads\n\n{table(results)}\n"
    (Path(options.out) / "results.md").write_text(text, encoding="utf-8")
    (Path(options.out) / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
