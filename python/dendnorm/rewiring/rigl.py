"""RigL under its own name: SET that grows where the gradient is largest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .set import SET

__all__ = ["RigL"]


class RigL(SET):
    """The weakest connections go, and as many come where the gradient of the loss is largest, with the value 0.

    It is ``SET(..., grow="gradient", every=every)`` with the settings of the paper: after every 100 steps of the
    optimizer, the share zeta / 2 (1 + cos(pi (t - start) / (stop - start))) of the connections, t being the number of
    the step, until it is 0 at ``stop`` (there equation 1, with alpha = 0.3 and T_end = ``stop``).

    Source: U. Evci et al, "Rigging the lottery: making all tickets winners", ICML 2020, algorithm 1.

    Args:
        model, optimizer, seed, drop: as for ``SET``.
        zeta: the share at the beginning, in [0, 1]; or a callable that gives it for the number of the rewiring.
        every: steps of the optimizer from one rewiring to the next. None: only when ``step()`` is called.
        start, stop: as for ``SET``. ``stop=None``: without an end, and zeta stays as it is. The paper stops after three
            quarters of the training.
        grow: "gradient", or a rule of ``dendnorm.grow``: distributed runs give ``grow.Gradient(reduce=...)``.

    Raises:
        TypeError, ValueError: as ``SET``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        zeta: float | Callable[[int], float] = 0.3,
        every: int | None = 100,
        start: int = 0,
        stop: int | None = None,
        *,
        seed: int = 0,
        drop: Any = "magnitude",
        grow: Any = "gradient",
    ) -> None:
        super().__init__(model, optimizer, zeta, seed, every, drop, grow, start=start, stop=stop)

    def share(self, number: int) -> float:
        """As ``SET``, falling with half a cosine where there is an end."""
        times, share = self._timetable, super().share(number)
        if times.stop is None or callable(self.zeta):
            return share
        done = min(max((times.total - times.start) / (times.stop - times.start), 0.0), 1.0)
        return share * (1 + math.cos(math.pi * done)) / 2 if done < 1 else 0.0
