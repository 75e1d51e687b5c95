"""What an entry of the table of ops (op_table.py) is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import op_references as references
import oracle
import torch

import dendnorm  # noqa: F401  (registers the ops)

ops = torch.ops.dendnorm
FLOATS = (torch.float32, torch.float64)
HALVES = (torch.bfloat16, torch.float16)

Sample = dict[str, Any]  # what to call an op with, by the names of its arguments


@dataclass(frozen=True)
class Shape:
    """Of a layer and its input: `lead` are the sizes before the features; row `empty` has no connection."""

    rows: int = 4
    cols: int = 5
    lead: tuple[int, ...] = (3,)
    density: float = 0.6
    empty: int | None = 2
    turned: int = 0  # so many columns further on

    def pattern(self, seed: int = 0) -> oracle.Pattern:
        mask = np.random.default_rng(seed).random((self.rows, self.cols)) < self.density
        if self.empty is not None:
            mask[self.empty] = False
        if self.density > 0:
            mask[0, 0] = True
        return oracle.pattern_of(np.roll(mask, self.turned, axis=1))


SMALL = Shape()
# Beside it the corners: one sample, many dimensions, none, no connections, every one; and more than one tile.
SHAPES = {
    "small": SMALL,
    "one sample": Shape(lead=()),
    "deep": Shape(lead=(2, 1, 2)),
    "no samples": Shape(lead=(2, 0)),
    "no connections": Shape(density=0.0),
    "dense": Shape(9, 7, (17,), density=1.0, empty=None),
    "wide": Shape(70, 90, (33,), density=0.3),
}
# So much that every kernel shares it among threads.
SHARED = Shape(203, 311, (129,), density=0.3)


@dataclass(frozen=True)
class Wrong:
    """A call that is refused: what a sample is changed by, and what the message then holds."""

    change: Callable[[Sample], Sample]
    message: tuple[str, ...]  # in this order, behind the prefix
    values: bool = False  # whether only values show the mistake, which meta tensors do not have
    prefix: str | None = None  # None: the name of the op
    error: type[Exception] = RuntimeError


@dataclass(frozen=True)
class Op:
    """An entry. What an op lacks is left out, and the tests of it with it."""

    samples: Callable[[str, torch.dtype, Shape], list[Sample]]  # for a norm, a dtype and a shape
    reference: Callable[..., references.Expected]
    errors: dict[str, Wrong]
    norms: tuple[str, ...] = ("none",)
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    differentiable: tuple[str, ...] = ()  # arguments
    refuses_gradients: bool = False  # by name, where an argument requires one
    strided: tuple[str, ...] = ()  # arguments that may have any strides
    vmap: tuple[tuple[str, ...], ...] = ()  # groups of arguments that are batched together
    writes: str | None = None  # the argument that it writes to
    thorough: tuple[str, ...] = ()  # norms for derivatives and opcheck, which take long; as `norms`, unless given

    @property
    def thorough_norms(self) -> tuple[str, ...]:
        return self.thorough or self.norms


def arguments_of(op: str) -> list[str]:
    return [argument.name for argument in getattr(ops, op).default._schema.arguments]


# Changes for `Wrong`


def put(name: str, make: Callable[[torch.Tensor], Any]) -> Callable[[Sample], Sample]:
    """Another value of an argument, made from the one that was there."""
    return lambda sample: sample | {name: make(sample[name])}


def told(wrong: dict[str, Wrong], prefix: str = "", error: type[Exception] = RuntimeError) -> dict[str, Wrong]:
    """The same mistakes where they are told in the words of another op, or in a user's and as another error."""
    return {name: dataclasses.replace(each, prefix=prefix, error=error) for name, each in wrong.items()}


def elsewhere(name: str) -> Wrong:
    """A tensor on another device."""
    return Wrong(put(name, lambda tensor: tensor.to("meta")), (f"{name} must be on", "got"))


def number(name: str, value: float, *message: str) -> Wrong:
    return Wrong(lambda sample: sample | {name: value}, (f"{name} must be", *message, f"{value:g}"))


def longer(tensor: torch.Tensor) -> torch.Tensor:
    """By one entry."""
    return torch.cat([tensor, tensor[:1]])


def doubled(tensor: torch.Tensor) -> torch.Tensor:
    """Twice as many features."""
    return torch.cat([tensor, tensor], -1)
