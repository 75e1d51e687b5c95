"""Which steps of an optimizer count: not those that a GradScaler skipped, and nothing waits for a device to say so.

A fused optimizer is stepped even where the scaler found an infinity, and skips the update by itself; the scaler leaves
what it found in ``optimizer.found_inf`` for the time of that step. Other optimizers are not stepped at all then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .._arguments import whole
from .optimizers import inside, stepping

__all__ = ["LatestStep", "StepCount", "Timetable", "skips_of"]


def skips_of(optimizer: Any, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """In a hook after a step: a tensor that is not 0 where the update was skipped; None where it certainly was not."""
    found = getattr(optimizer, "found_inf", None)
    if found is None and kwargs.get("grad_scaler") is not None:  # optimizers that take the scaler themselves
        infinities = kwargs["grad_scaler"]._found_inf_per_device(optimizer)
        found = sum(tensor.detach().cpu() for tensor in infinities.values()) if infinities else None
    return found if isinstance(found, torch.Tensor) else None


def _waits(device: torch.device) -> bool:
    """Whether to read a number from there means to wait."""
    return device.type != "cpu"


class StepCount:
    """Steps since they were last taken, some of which may turn out to have been skipped."""

    def __init__(self) -> None:
        self._sure = 0
        self._open = 0  # steps of which the device is yet to say whether they were skipped
        self._skipped: torch.Tensor | None = None  # how many of those were
        self._latest: torch.Tensor | None = None

    def note(self, skips: torch.Tensor | None) -> None:
        """A step was made."""
        self._latest = None
        if skips is None:
            self._sure += 1
            return
        skipped = (skips.detach() != 0).any()
        self._latest = skipped
        self._open += 1
        self._skipped = skipped.long() if self._skipped is None else self._skipped.to(skipped.device) + skipped
        if not _waits(skipped.device):
            self._settle()

    @property
    def at_most(self) -> int:
        """So many steps, if none of them was skipped."""
        return self._sure + self._open

    def take(self) -> int:
        """How many there were since the last time; waits for the device where that is open."""
        self._settle()
        taken, self._sure = self._sure, 0
        return taken

    def latest_counts(self) -> bool:
        """Whether the latest one was made and not skipped."""
        return self._latest is None or not bool(self._latest)

    def _settle(self) -> None:
        if self._skipped is not None:
            self._sure += self._open - int(self._skipped)
            self._open, self._skipped = 0, None


class LatestStep:
    """Whether the latest step of a trainer was one of its optimizers, or was skipped by a ``GradScaler``."""

    def __init__(self, optimizer: Any) -> None:
        one = stepping(optimizer, [])
        watched = [one] if one is not None else [each for each in inside(optimizer) if stepping(each, []) is each]
        self.any = False  # whether there was one at all, skipped or not
        self._now: list[torch.Tensor | None] = []
        self._last: list[torch.Tensor | None] | None = None
        self._handles = [each.register_step_post_hook(self._after) for each in watched]

    def turn(self) -> None:
        """The trainer counts a step."""
        self._last, self._now = self._now, []

    def made(self) -> bool:
        """Whether an optimizer made it; True where none tells. Waits for the device if a scaler is in use."""
        if self._last is None or not self._handles:
            return True
        return any(skips is None or not bool((skips != 0).any()) for skips in self._last)

    def remove(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _after(self, optimizer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.any = True
        self._now.append(skips_of(optimizer, kwargs))


class Timetable:
    """When an optimizer's steps bring about a rewiring: after start + every, start + 2 every and so on, up to stop.

    Counted are steps that were not skipped.

    Args:
        every: None: never by itself.
        start: steps before the count for the first one begins.
        stop: the last step after which one may come; None: no end.

    Attributes:
        calls: steps since the latest rewiring, or since ``start``.
        total: steps in all.

    Raises:
        TypeError, ValueError: an argument that is not as above.
    """

    def __init__(self, every: int | None, start: int, stop: int | None) -> None:
        self.every = None if every is None else whole("every", every, 1)
        self.start = whole("start", start, 0)
        self.stop = None if stop is None else whole("stop", stop, 1)
        if self.every is None and (self.start or self.stop is not None):
            raise ValueError(f"every must be given with start and stop, got start={start!r}, stop={stop!r} without it")
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop must be above start = {self.start}, got {self.stop}")
        self.calls, self.total = 0, 0
        self._count = StepCount()

    @property
    def bounded(self) -> bool:
        """Whether it matters how many steps there were in all."""
        return self.start > 0 or self.stop is not None

    def note(self, skips: torch.Tensor | None) -> None:
        """The optimizer made a step, or it skipped one: ``skips_of`` tells."""
        self._count.note(skips)

    def due(self) -> bool:
        """Whether a rewiring follows the step that was just made; waits for the device only where that is open."""
        if self.every is None or self._calls_after(self._count.at_most) < self.every:
            return False
        self.settle()
        return self.calls >= self.every and not self._over(self.total) and self._count.latest_counts()

    def due_next(self) -> bool:
        """Whether one may follow the next step."""
        ahead = self._count.at_most + 1
        return self.every is not None and self._calls_after(ahead) >= self.every and not self._over(self.total + 1)

    def settle(self) -> None:
        """Make ``calls`` and ``total`` what they are."""
        taken = self._count.take()
        self.calls = self._calls_after(taken)
        self.total += taken

    def clear(self) -> None:
        """Forget the steps that were not yet counted."""
        self._count = StepCount()

    def _calls_after(self, more: int) -> int:
        return self.calls + max(0, self.total + more - max(self.total, self.start))

    def _over(self, total: int) -> bool:
        return self.stop is not None and total > self.stop
