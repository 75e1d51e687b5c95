"""The same bits: over 1 to 16 threads, repeats, and processes; forward, backward, optimizer and rewiring together."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import torch

import dendnorm

from . import ROOT
from .tally import Tally

THREADS = range(1, 17)
NORMS = ("none", "l0", "l0-variable", "lp:3", "lp-variable:1.5", "weight_norm", "joint")
EVERY = 20  # units, whose digests a process of its own computes again
REPEATS = 6


def model_of(number: int) -> tuple[torch.nn.Module, torch.Tensor]:
    norm, dtype = NORMS[number % len(NORMS)], (torch.float32, torch.float64)[number // len(NORMS) % 2]
    draw = torch.Generator().manual_seed(number)
    if number % 3:
        sizes = (90 + number % 60, 130 + number % 37, 7)
        layers = [dendnorm.SparseLinear(a, b, density=0.2, norm=norm, seed=number + a, dtype=dtype)
                  for a, b in itertools.pairwise(sizes)]  # fmt: skip
        x = torch.randn((1, 10, 64, 129)[number % 4], sizes[0], generator=draw, dtype=torch.float64)
        return torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1]), x.to(dtype)
    first = dendnorm.SparseConv2d(4, 12, 3, padding=1, density=0.3, norm=norm, seed=number, dtype=dtype)
    second = dendnorm.SparseConv2d(12, 6, (1, 2), stride=2, density=0.5, norm=norm, seed=number + 1, dtype=dtype)
    x = torch.randn((2, 17)[number % 2], 4, 13, 15, generator=draw, dtype=torch.float64)
    return torch.nn.Sequential(first, torch.nn.ReLU(), second), x.to(dtype)


def digest(number: int) -> str:
    """Of all that two steps and a rewiring give."""
    model, x = model_of(number)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rewirer = dendnorm.SET(model, optimizer, zeta=0.3, seed=number, grow=("random", "gradient")[number % 2])
    found = hashlib.sha256()

    def take(tensor: torch.Tensor) -> None:
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())

    for step in range(2):
        if step:
            rewirer.observe()
        leaf = x.clone().requires_grad_()
        optimizer.zero_grad()
        out = model(leaf)
        out.square().sum().backward()
        take(out)
        take(leaf.grad)
        for parameter in model.parameters():
            take(parameter.grad)
        optimizer.step()
    list(rewirer.step())
    for tensor in model.state_dict().values():
        take(tensor)
    for state in optimizer.state.values():
        take(state["momentum_buffer"])
    return found.hexdigest()


def elsewhere(first: int, threads: int) -> list[str]:
    """The digests of a process of its own."""
    program = f"from reliability.bits import digest; import json; print(json.dumps([digest(n) for n in range({first}, {first + EVERY})]))"  # noqa: E501  # fmt: skip
    paths = (ROOT / "tests", ROOT / "python", ROOT / "tests" / "python")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def unit(number: int, tally: Tally) -> None:
    before = torch.get_num_threads()
    try:
        found = []
        for threads in THREADS:
            torch.set_num_threads(threads)
            found.append(digest(number))
        torch.set_num_threads(before)
        found += [digest(number) for _ in range(REPEATS)]
    finally:
        torch.set_num_threads(before)
    tally.count("models")
    tally.count("over threads", len(THREADS) - 1)
    tally.count("repeats", REPEATS)
    tally.expect(len(set(found)) == 1, f"model {number}: {len(set(found))} results on {list(THREADS)} threads")
    if number % EVERY == EVERY - 1:
        first = number + 1 - EVERY
        own = [digest(n) for n in range(first, number + 1)]
        tally.count("over processes", EVERY)
        tally.expect(elsewhere(first, 1 + number % 3) == own, f"models from {first}: another process has other bits")


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """A result whose last bit depends on the number of threads."""
    global model_of
    kept = model_of

    def uneven(number: int) -> tuple[torch.nn.Module, torch.Tensor]:
        model, x = kept(number)
        return model, x * (1 + torch.finfo(x.dtype).eps * (torch.get_num_threads() > 9))

    model_of = uneven
    try:
        yield
    finally:
        model_of = kept
