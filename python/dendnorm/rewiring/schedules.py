"""Numbers that change from one rewiring to the next: give them as ``zeta=`` to ``SET``, or call them yourself.

A schedule is any callable from the number of the rewiring, counted from 1 (``RewireReport.step``), to a number. These
classes are such callables; each says where its formula is from.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

__all__ = ["Constant", "Cosine", "Cubic", "Linear"]


def _share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= float(value) <= 1:  # refuses NaN, too
        raise ValueError(f"{name} must be in [0, 1], got {value}")


@dataclass(frozen=True)
class _Between:
    """From ``start`` to ``stop`` over ``steps`` rewirings, and ``stop`` from then on."""

    start: float
    steps: int
    stop: float = 0.0

    def __post_init__(self) -> None:
        _share("start", self.start)
        _share("stop", self.stop)
        if isinstance(self.steps, bool) or not isinstance(self.steps, numbers.Integral):
            raise TypeError(f"steps must be an int, got {self.steps!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def __call__(self, step: int) -> float:
        done = min(max(step / self.steps, 0.0), 1.0)
        return self.stop + (self.start - self.stop) * self._left(done)

    def _left(self, done: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant:
    """The same number always.

    Args:
        value: in [0, 1].

    Raises:
        TypeError, ValueError: a value that is not.
    """

    value: float

    def __post_init__(self) -> None:
        _share("value", self.value)

    def __call__(self, step: int) -> float:
        return float(self.value)


class Cosine(_Between):
    """Half a cosine, stop + (start - stop) / 2 (1 + cos(pi step / steps)), and ``stop`` from step ``steps`` on.

    With ``stop=0`` this is equation 1 of U. Evci et al, "Rigging the lottery: making all tickets winners", ICML 2020:
    there t = step * every optimizer steps and T_end = steps * every.

    Args:
        start, stop: in [0, 1].
        steps: rewirings, at least 1.

    Raises:
        TypeError, ValueError: an argument that is not as above.
    """

    def _left(self, done: float) -> float:
        return (1 + math.cos(math.pi * done)) / 2 if done < 1 else 0.0


class Linear(_Between):
    """A straight line, start + (stop - start) step / steps; arguments and errors as for ``Cosine``."""

    def _left(self, done: float) -> float:
        return 1 - done


class Cubic(_Between):
    """stop + (start - stop) (1 - step / steps)^3; arguments and errors as for ``Cosine``.

    For the density of gradual pruning with ``resize``: M. Zhu and S. Gupta, "To prune, or not to prune", 2017, equation
    1, where the sparsity is 1 minus this.
    """

    def _left(self, done: float) -> float:
        return (1 - done) ** 3
