"""Calls that are wrong, of every op, eager and compiled: refused by name, nothing changed, and the next call right.

The mistakes are those of the table of ops (op_table.py): patterns, shapes, dtypes, devices, values and sizes.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator

import torch
from op_table import OPS
from test_ops import AOT, check, given, small

from .tally import Tally

ops = torch.ops.dendnorm
CASES = [(name, mistake) for name, op in OPS.items() for mistake in op.errors]
MANY = 8  # in each unit
COMPILED_EVERY = 4


def refuses(name: str, mistake: str, compiled: bool, tally: Tally) -> None:
    wrong = OPS[name].errors[mistake]
    norm = "joint" if "joint" in OPS[name].norms else "none"
    right = small(name, norm)[0]
    sample = wrong.change(small(name, norm)[0])
    kept = {argument: tensor.clone() for argument, tensor in given(sample).items()}
    prefix = f"dendnorm::{name}: " if wrong.prefix is None else wrong.prefix
    message = re.compile(".*".join(map(re.escape, (prefix, *wrong.message))), re.DOTALL)
    how = "compiled" if compiled else "eager"
    where = f"{name}, {mistake}, {how}"

    def run(sample):
        return getattr(ops, name)(**sample)

    if compiled:
        logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
        torch._dynamo.reset()
        run = torch.compile(run, fullgraph=True, backend=AOT)
    try:
        run(sample)
        tally.find(f"{where}: was not refused")
    except Exception as error:
        told = message.search(str(error)) or message.search(str(error.__cause__))
        if compiled and mistake.endswith("elsewhere"):  # which PyTorch refuses by itself, before the op is asked
            told = told or (name in str(error) and "on the same device" in str(error))
        tally.expect(told, f"{where}: {type(error).__name__}: {str(error)[:300]}")
    tally.count(how)
    tally.counts[f"kind {re.sub(r'[^ ]*_indices', 'pattern', mistake)}"] += 1
    for argument, tensor in given(sample).items():
        same = tensor.is_meta or torch.equal(tensor.nan_to_num(), kept[argument].nan_to_num())
        tally.expect(same, f"{where}: {argument} has changed")
    try:
        check(name, right)
        tally.count("right calls after")
    except AssertionError as error:
        tally.find(f"{where}: the next call: {error}")


def unit(number: int, tally: Tally) -> None:
    """Wrong calls in their order; some of them compiled, too."""
    for index in range(number * MANY, (number + 1) * MANY):
        name, mistake = CASES[index * 37 % len(CASES)]
        refuses(name, mistake, False, tally)
        if index % COMPILED_EVERY == index // len(CASES) % COMPILED_EVERY:
            refuses(name, mistake, True, tally)


def summary(tally: Tally) -> None:
    tally.counts["kinds"] = sum(key.startswith("kind ") for key in tally.counts)


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """A mistake that is none: it must be told that it was not refused."""
    import dataclasses

    name, mistake = CASES[0]
    kept = OPS[name].errors[mistake]
    OPS[name].errors[mistake] = dataclasses.replace(kept, change=lambda sample: sample)
    try:
        yield
    finally:
        OPS[name].errors[mistake] = kept
