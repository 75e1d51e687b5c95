"""The layers' ops, forward and backward, against the float64 oracle, within a bound that is derived.

A sum of k terms that is formed in any order, each term with a few roundings of its own, errs by at most
k eps sum |terms| (N. Higham, "Accuracy and stability of numerical algorithms", 2002, chapter 3). k counts the terms
that the longest chain adds, and what the norm takes: n powers, their sum, a root, n^a and two divisions. Results in 16
bits are rounded once more, by half a subnormal number at least.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import oracle
import oracle_conv
import torch
from op_table import FAMILY
from oracle_inputs import LAYOUTS, excitability_of, laid_out, leading_shape, random_mask, random_values

import dendnorm  # noqa: F401  (registers the ops)

from .tally import Tally

ops = torch.ops.dendnorm
CASES, CONVOLUTIONS = 50, 4  # in each unit
BATCHES = (0, 1, 2, 7, 10, 16, 17, 33, 64, 65, 129)
HALVES = (torch.bfloat16, torch.float16)
MARGIN = 8  # roundings of a norm beside its sums: |u|, |u|^p, a root, n^a, D, e / D, and their product with v


@dataclass(frozen=True)
class Case:
    """Arguments of a layer's op with what is asked of it."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    excitability: torch.Tensor | None
    pattern: oracle.Pattern
    norm: tuple[float, float, float]
    grad: torch.Tensor
    label: str


def of_power(case: Case) -> int:
    """Roundings of |u|^p as exp2(p log2 |u|), whose exponent is rounded; whole p are products."""
    p = case.norm[2]
    if p in (1, 2, 3):
        return 0
    v = np.abs(oracle.dense_of(case.weight, case.pattern))
    u = v / np.where(v.max(1, initial=0) > 0, v.max(1, initial=1), 1)[:, None]
    return int(np.ceil(p * np.abs(np.log2(u[u > 0])).max(initial=0)))


def of_norm(case: Case) -> int:
    """Roundings between v and w."""
    a, b, _ = case.norm
    degree = int(case.pattern.mask.sum(1).max(initial=0))
    of_powers = degree + of_power(case)
    return (MARGIN + of_powers if b else MARGIN) if a or b or case.excitability is not None else 1


def chains(case: Case, samples: int) -> dict[str, int]:
    """k of each result."""
    mask, norm = case.pattern.mask, of_norm(case)
    rows, cols = int(mask.sum(1).max(initial=0)), int(mask.sum(0).max(initial=0))
    inner = rows if case.norm[1] else 0  # the gradient of a norm's length sums over the row
    return {
        "output": rows + norm + 2,
        "input": cols + norm + 2,
        "weight": samples + inner + 2 * norm + 2,
        "bias": samples + 1,
        "excitability": samples + mask.size + norm + 2,
    }


def compare(name: str, got: torch.Tensor, want: oracle.Result, k: int, case: Case, tally: Tally) -> None:
    half = got.dtype in HALVES
    eps = torch.finfo(torch.float32 if half else got.dtype).eps
    values = got.detach().double().numpy()
    if values.shape != want.value.shape or not np.isfinite(values).all():
        tally.find(f"{case.label}: {name} has shape {values.shape} or is not finite")
        return
    terms = want.terms + 1e-12 * want.terms.max(initial=0)
    # 16 bits: everything in 32, and one rounding at the end.
    bound = k * eps * terms
    if half:
        info = torch.finfo(got.dtype)
        bound = bound + info.eps * (np.abs(want.value) + bound) + info.tiny * info.eps / 2
    error = np.abs(values - want.value)
    if want.skip is not None:
        error = np.where(want.skip, 0.0, error)
    share = np.divide(error, bound, out=np.where(error > 0, np.inf, 0.0), where=bound > 0)
    tally.count("results")
    tally.count("entries", values.size)
    tally.most("share", share.max(initial=0))
    if not half:
        units = np.divide(error, eps * terms, out=np.zeros_like(error), where=terms > 0)
        tally.most("ulp", units.max(initial=0))
    tally.expect(share.max(initial=0) <= 1, f"{case.label}: {name} errs by {share.max(initial=0):.3g} of its bound")


def check(case: Case, got: torch.Tensor, leaves: dict[str, torch.Tensor], want, samples: int, tally: Tally) -> None:
    k = chains(case, samples)
    compare("output", got, want.output, k["output"], case, tally)
    gradients = torch.autograd.grad(got, list(leaves.values()), case.grad)
    for (name, _), gradient in zip(leaves.items(), gradients, strict=True):
        result = getattr(want, f"d_{name}")
        if name == "weight":
            result = oracle.Result(result.value, result.terms, want.undefined)
        compare(f"gradient of {name}", gradient, result, k[name], case, tally)
    tally.count("cases")


def leaves_of(case: Case) -> dict[str, torch.Tensor]:
    named = {"input": case.x, "weight": case.weight, "bias": case.bias, "excitability": case.excitability}
    return {name: tensor.detach().requires_grad_() for name, tensor in named.items() if tensor is not None}


def drawn(rng: np.random.Generator, pattern: oracle.Pattern, shape: tuple, outputs: tuple, label: str) -> Case:
    norm = sorted(FAMILY)[rng.integers(len(FAMILY))]
    a, b, p, kind = FAMILY[norm]
    dtype = (torch.float32, torch.float64, torch.float32, torch.float64, *HALVES)[rng.integers(6)]
    values = torch.float32 if dtype in HALVES else dtype
    rows = pattern.mask.shape[0]
    layouts = [LAYOUTS[i] for i in rng.integers(len(LAYOUTS), size=2)]
    scale = 10.0 ** float(rng.choice([-6, 0, 0, 0, 6])) if dtype not in HALVES else 1.0
    return Case(
        laid_out(rng, shape, layouts[0], values).to(dtype),
        random_values(rng, pattern, values, zero_rows=dtype not in HALVES) * scale,
        laid_out(rng, (rows,), "contiguous", values) if rng.random() < 0.6 else None,
        excitability_of(rng, kind, rows, values),
        pattern,
        (a, b, p),
        laid_out(rng, outputs, layouts[1], values).to(dtype),
        f"{label}, {norm}, {dtype}, {shape}, {layouts}",
    )


def linear(rng: np.random.Generator, label: str, tally: Tally) -> None:
    rows, cols = (int(size) for size in rng.integers(0, 41, 2))
    pattern = oracle.pattern_of(random_mask(rng, rows, cols, float(rng.choice([0, 1, rng.random()]))))
    lead = leading_shape(rng, int(rng.integers(1, 5)), int(rng.choice([*BATCHES, rng.integers(0, 71)])))
    case = drawn(rng, pattern, (*lead, cols), (*lead, rows), f"linear {label}")
    leaves = leaves_of(case)
    got = ops.sparse_linear(*(leaves.get(n) for n in ("input", "weight", "bias", "excitability")),
                            *pattern.tensors, *case.norm)  # fmt: skip
    want = oracle.sparse_linear(case.x, case.weight, case.bias, case.excitability, pattern, *case.norm, case.grad)
    check(case, got, leaves, want, int(np.prod(lead, dtype=np.int64)), tally)


def convolution(rng: np.random.Generator, label: str, tally: Tally) -> None:
    groups = int(rng.choice([1, 1, 2]))
    kernel = tuple(int(size) for size in rng.integers(1, 4, 2))
    channels, filters = (groups * int(size) for size in rng.integers(1, 4, 2))
    window = oracle_conv.Window(
        kernel, tuple(map(int, rng.integers(1, 3, 2))), tuple(map(int, rng.integers(0, 3, 4))),
        tuple(map(int, rng.integers(1, 3, 2))), groups,
    )  # fmt: skip
    image = tuple(int(size) for size in rng.integers(5, 10, 2))
    pattern = oracle.pattern_of(
        random_mask(rng, filters, channels // groups * kernel[0] * kernel[1], float(rng.random()))
    )
    batch = int(rng.choice([1, 2, 5, 16]))
    outputs = (batch, filters, window.positions(0, image[0]), window.positions(1, image[1]))
    case = drawn(rng, pattern, (batch, channels, *image), outputs, f"convolution {label}")
    leaves = leaves_of(case)
    got = ops.sparse_conv2d(*(leaves.get(n) for n in ("input", "weight", "bias", "excitability")),
                            *pattern.tensors, *case.norm, list(window.kernel_size), list(window.stride),
                            list(window.padding), list(window.dilation), groups)  # fmt: skip
    want = oracle_conv.sparse_conv2d(
        case.x, case.weight, case.bias, case.excitability, pattern, *case.norm, window, case.grad
    )
    tally.count("convolutions")
    check(case, got, leaves, want, batch * outputs[2] * outputs[3], tally)


def unit(number: int, tally: Tally) -> None:
    rng = np.random.default_rng(number)
    for index in range(CASES):
        linear(rng, f"{number}.{index}", tally)
    for index in range(CONVOLUTIONS):
        convolution(rng, f"{number}.{index}", tally)
    tally.counts["kernel set " + os.environ.get("DENDNORM_CPU_CAPABILITY", "best")] += CASES + CONVOLUTIONS


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """An oracle whose weights are 1e-5 too large: what a kernel that rounds to 16 bits on its way would look like."""
    kept = oracle.effective_weight
    oracle.effective_weight = lambda *arguments: kept(*arguments) * (1 + 1e-5)
    try:
        yield
    finally:
        oracle.effective_weight = kept
