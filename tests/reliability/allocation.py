"""Memory that runs out: the k-th tensor, and the k-th `new` of the compiled library, for every k.

A preloaded library (allocation.cpp) makes one allocation fail. The call then raises, and every bit of model, optimizer
and rewirer is what it was; when no allocation fails any more, the call does what it does undisturbed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import dendnorm
from dendnorm.rewiring import writing

from . import ROOT
from .mutated import same, state
from .tally import Tally

SOURCE = Path(__file__).with_name("allocation.cpp")
LIBRARY = ROOT / "build" / "reliability" / "allocation.so"
NORMS = ("l0", "joint", "none", "lp-variable:3")
OPTIMIZERS: tuple[Callable, ...] = (
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    lambda p: torch.optim.Adagrad(p, lr=0.01),
)
DROPS, GROWS = ("magnitude", "sign", "gradient", "cosine"), ("random", "gradient", "cosine")
MOST = 3000  # allocations of one call


def environment() -> dict[str, str]:
    """With the library that fails, which is compiled here."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is not None and (not LIBRARY.exists() or LIBRARY.stat().st_mtime < SOURCE.stat().st_mtime):
        LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        made = LIBRARY.with_suffix(f".{os.getpid()}.so")
        options = ["-std=c++20", "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(made), "-ldl"]
        subprocess.run([compiler, *options], check=True)
        os.replace(made, LIBRARY)
    return {"LD_PRELOAD": str(LIBRARY)}


@functools.cache
def shim() -> Any:
    library = ctypes.CDLL(None)
    library.fail_at.argtypes = [ctypes.c_long, ctypes.c_long]
    library.has_failed.restype = ctypes.c_bool
    return library


def parts(number: int, seed: int = 0) -> tuple:
    torch.manual_seed(seed)
    norm = NORMS[number % len(NORMS)]
    model = torch.nn.Sequential(
        dendnorm.SparseLinear(12, 9, density=0.4, norm=norm, seed=seed),
        torch.nn.Tanh(),
        dendnorm.SparseLinear(9, 6, density=0.5, norm=norm, seed=seed + 1),
    )
    optimizer = OPTIMIZERS[number % len(OPTIMIZERS)](model.parameters())
    drop, grow = DROPS[number % len(DROPS)], GROWS[number // 2 % len(GROWS)]
    rewirer = dendnorm.SET(model, optimizer, zeta=0.4, seed=seed, drop=drop, grow=grow)
    rewirer.observe()
    model(torch.randn(5, 12)).square().sum().backward()
    optimizer.step()
    return model, optimizer, rewirer


def whole_state(some: tuple) -> list:
    """With what the state dicts leave out."""
    model = some[0]
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    views = [tensor.clone() for layer in model if isinstance(layer, dendnorm.SparseLinear) for tensor in layer.pattern]
    return [state(some), gradients, views]


def every(
    number: int, act: str, kind: str, call: Callable[[tuple], Any], made: Callable[[], tuple], tally: Tally
) -> None:
    """Let the first allocation of a call fail, then the second, until it goes through."""
    undisturbed = made()
    call(undisturbed)
    wanted, some = whole_state(undisturbed), made()
    before = whole_state(some)
    for k in range(1, MOST):
        where = f"{act} {number}, {kind} {k}"
        error: BaseException | None = None
        shim().fail_at(*((k, 0) if kind == "tensor" else (0, k)))
        try:
            call(some)
        except (RuntimeError, ValueError, MemoryError, TypeError) as caught:
            error = caught
        failed = shim().has_failed()
        shim().fail_at(0, 0)
        if not failed:
            tally.expect(error is None, f"{where}: {error}")
            tally.expect(same(wanted, whole_state(some)), f"{where}: the call that goes through does something else")
            tally.count(f"calls that went through, {act}")
            return
        tally.count(f"{kind}s failing")
        if error is None:  # caught on the way, and done without
            tally.count("done without")
            some = made()
        elif not same(before, whole_state(some)):
            tally.find(f"{where}: half-done after {type(error).__name__}: {str(error)[:120]}")
            some = made()
        error = None
    tally.find(f"{act} {number}: more than {MOST} allocations")


def _load(path: Path, some: tuple) -> Any:
    return dendnorm.load(path, *some)


def unit(number: int, tally: Tally) -> None:
    """A rewiring and a loading, with tensors failing, then with the library's own objects."""
    for kind in ("tensor", "object"):
        every(number, "rewiring", kind, lambda some: list(some[2].step()), lambda: parts(number), tally)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.safetensors"
            dendnorm.save(path, *parts(number, 5))
            loads = functools.partial(_load, path)
            every(number, "loading", kind, loads, lambda: parts(number), tally)


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """A rewiring that takes memory while it writes."""
    kept = writing.Rewiring.write

    def hungry(self: Any, status: Any) -> None:
        kept(self, status)
        torch.empty(3)

    writing.Rewiring.write = hungry  # type: ignore[method-assign]
    try:
        yield
    finally:
        writing.Rewiring.write = kept  # type: ignore[method-assign]
