"""Flush-to-zero, rounding modes, NaN with their payloads, signed zeros and subnormals, through every op and thread.

The bits do not depend on the number of threads whatever the mode of the caller is; the caller's mode and the arguments
stay as they were; what is not finite in one sample stays in that sample; and what only moves values moves their bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from op_entry import SHARED, Sample, Shape
from op_table import OPS, TYPICAL_NORMS
from test_ops import EVERY_DTYPE, call, given

from .tally import Tally

ops = torch.ops.dendnorm
THREADS = (1, 2, 3, 7, 16)
ROUNDINGS = {"to nearest": 0, "down": 0x400, "up": 0x800, "to zero": 0xC00}  # fesetround, on x86
MODES = ("to nearest", "flush to zero", "down", "up", "to zero")
CASES = [case for case in EVERY_DTYPE if case[1] in TYPICAL_NORMS]
MIDDLE = Shape(70, 90, (33,), density=0.3)
_libm = ctypes.CDLL("libm.so.6")


def settings() -> tuple[int, bool]:
    """The rounding mode, and whether subnormal numbers are taken for 0."""
    small = torch.full((1,), 1e-310, dtype=torch.float64)
    return _libm.fegetround(), bool((small * 1.0 == 0).item())


@contextlib.contextmanager
def mode(name: str) -> Iterator[None]:
    before = settings()
    if name == "flush to zero":
        torch.set_flush_denormal(True)
    else:
        _libm.fesetround(ROUNDINGS[name])
    try:
        yield
    finally:
        _libm.fesetround(before[0])
        torch.set_flush_denormal(before[1])


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def numbers(tensor: torch.Tensor) -> bytes:
    """Its bits, every NaN taken for the same: what two NaN give is the processor's choice."""
    tensor = tensor.detach()
    return bits(torch.where(tensor.isnan(), torch.nan, tensor)) if tensor.is_floating_point() else bits(tensor)


def special(rng: np.random.Generator, tensor: torch.Tensor) -> torch.Tensor:
    """Some of the entries replaced by zeros of both signs, subnormals, infinities, NaN with payloads, tiny and huge."""
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    info = torch.finfo(tensor.dtype)
    values = [0.0, -0.0, info.tiny / 4, -info.tiny / 8, info.tiny, info.max / 2, np.inf, -np.inf, np.nan]
    new = tensor.clone().contiguous()
    flat = new.flatten()
    where = torch.from_numpy(rng.random(len(flat)) < 0.02)
    flat[where] = torch.tensor(rng.choice(values, int(where.sum())), dtype=torch.float64).to(tensor.dtype)
    return flat.reshape(tensor.shape)


def outcome(name: str, sample: Sample) -> tuple[str, list[bytes]]:
    try:
        return "", [numbers(result) for result in call(name, sample)]
    except (RuntimeError, ValueError) as error:  # what is refused is refused on any number of threads
        return str(error).partition("\n")[0], []


@functools.lru_cache(maxsize=4)
def sample_of(name: str, norm: str, dtype: torch.dtype, shape: Shape) -> Sample:
    return OPS[name].samples(norm, dtype, shape)[0]


def every_thread(number: int, name: str, norm: str, dtype: torch.dtype, which: str, tally: Tally) -> None:
    rng = np.random.default_rng(number)
    plain = sample_of(name, norm, dtype, SHARED if number % 4 == 0 else MIDDLE)
    sample = {argument: special(rng, value) if isinstance(value, torch.Tensor) and number % 3 else value
              for argument, value in plain.items()}  # fmt: skip
    kept = {argument: bits(tensor) for argument, tensor in given(sample).items()}
    found = []
    threads = torch.get_num_threads()
    try:
        with mode(which):
            before = settings()
            for count in THREADS:
                torch.set_num_threads(count)
                found.append(outcome(name, sample))
                tally.count("calls")
                tally.expect(settings() == before, f"{name}, {which}: the caller's mode has changed")
    finally:
        torch.set_num_threads(threads)
    tally.expect(all(other == found[0] for other in found), f"{name}, {norm}, {dtype}, {which}: other bits")
    for argument, tensor in given(sample).items():
        if argument != "status":
            tally.expect(bits(tensor) == kept[argument], f"{name}, {which}: {argument} has changed")


def one_sample(number: int, tally: Tally) -> None:
    """What is not finite in one sample stays in it."""
    rng = np.random.default_rng(number)
    norm = TYPICAL_NORMS[number % len(TYPICAL_NORMS)]
    dtype = (torch.float32, torch.float64)[number % 2]
    for name in ("sparse_linear", "sparse_conv2d"):
        sample = sample_of(name, norm, dtype, MIDDLE)
        image: torch.Tensor = sample["input"].clone()
        chosen = int(rng.integers(len(image)))
        image[chosen].flatten()[int(rng.integers(image[chosen].numel()))] = float(rng.choice([np.nan, np.inf]))
        (clean,), (spoilt,) = call(name, sample), call(name, sample | {"input": image})
        others = [index for index in range(len(image)) if index != chosen]
        tally.count("samples apart", len(others))
        tally.expect(bits(clean[others]) == bits(spoilt[others]), f"{name}, {norm}: NaN reached another sample")


def moved(number: int, tally: Tally) -> None:
    """The op that carries values to their new places carries their bits."""
    rng = np.random.default_rng(number)
    size = int(rng.integers(1, 4000))
    patterns: Any = rng.integers(0, 2**32, size, dtype=np.uint64).astype(np.uint32)
    patterns[: size // 2] = rng.choice([0x7FC00001, 0xFFC12345, 0x7F812345, 0x80000000, 1, 0x807FFFFF], size // 2)
    values = torch.from_numpy(rng.permutation(patterns).astype(np.uint32).view(np.float32).copy())
    stay = np.sort(rng.choice(size, int(rng.integers(0, size + 1)), replace=False))
    source = np.full(size, -1, dtype=np.int32)
    source[np.sort(rng.choice(size, len(stay), replace=False))] = stay
    fill = np.array(0x7FA00042, dtype=np.uint32).view(np.float32)
    old = values.numpy().view(np.uint32).copy()
    wanted = np.where(source >= 0, old[source], np.uint32(0x7FA00042))
    for which in MODES:
        new = torch.from_numpy(old.view(np.float32).copy())
        with mode(which):
            ops.carry_(new, torch.from_numpy(source), torch.from_numpy(fill.reshape(())))
        tally.count("values moved", size)
        tally.expect((new.numpy().view(np.uint32) == wanted).all(), f"carry_, {which}: other bits")


def ordered(number: int, tally: Tally) -> None:
    """0 and -0 are equal, subnormals are not, in every mode."""
    rng = np.random.default_rng(number)
    size = int(rng.integers(1, 300))
    score = torch.tensor(rng.choice([0.0, -0.0, 1e-40, 2e-40, 1e-38, 1.0, np.inf, -np.inf], size), dtype=torch.float32)
    k = int(rng.integers(0, size + 1))
    wanted = np.zeros(size, dtype=bool)
    wanted[np.argsort(score.numpy(), kind="stable")[:k]] = True
    for which in MODES:
        with mode(which):
            got = ops.weakest(score, k)
        tally.count("orders")
        tally.expect((got.numpy() == wanted).all(), f"weakest, {which}: another order")


def unit(number: int, tally: Tally) -> None:
    """One op, norm, dtype and mode on every number of threads; and a case of each of the others."""
    name, norm, dtype = CASES[number * 7 % len(CASES)]
    every_thread(number, name, norm, dtype, MODES[number // len(CASES) % len(MODES)], tally)
    every_thread(number, name, norm, dtype, MODES[number % len(MODES)], tally)
    one_sample(number, tally)
    moved(number, tally)
    ordered(number, tally)
    tally.sums[f"op {name}"] = np.ones(1)


def summary(tally: Tally) -> None:
    tally.counts["ops"] = sum(key.startswith("op ") for key in tally.sums)
    tally.counts["of ops"] = len(OPS)


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """A call that leaves another rounding mode behind, as a kernel would that sets one and forgets it."""
    global call
    kept = call

    def forgetful(name: str, sample: Sample) -> list[torch.Tensor]:
        results = kept(name, sample)
        _libm.fesetround(ROUNDINGS["down"])
        return results

    call = forgetful
    try:
        yield
    finally:
        call = kept
        _libm.fesetround(0)
