"""The equal search for every norm, where the paper gives no learning rate."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import trials
from .settings import Settings

__all__ = ["SEARCHED", "Grid", "pick", "search"]

SEARCHED = ("lr", "s", "dropout")  # the settings that a grid chooses


@dataclass(frozen=True)
class Grid:
    """The same search for every norm: all combinations of a learning rate, an excitability (of those that have one),
    a share that is dropped out and what else is named, one trial each; the accuracy before rewiring on held-out
    training examples decides."""

    lr: tuple[float, ...]
    s: tuple[float, ...]
    dropout: tuple[float, ...] = (0.0,)
    epochs: int = 2
    validation: int = 10_000
    seed: int = 10_000  # not one of the trials that follow
    also: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # values of other settings to choose

    @property
    def names(self) -> tuple[str, ...]:
        """The settings that it chooses."""
        return (*SEARCHED, *self.also)

    def candidates(self, settings: Settings, norm: str) -> list[Settings]:
        """Every point, with one s where there is none to choose."""
        excitabilities = self.s if norm != "none" else (settings.s,)
        tried = replace(settings, epochs=self.epochs, validation=self.validation, seed=self.seed, trials=1, inspect=())
        points = itertools.product(self.lr, excitabilities, self.dropout, *self.also.values())
        return [replace(tried, **dict(zip(self.names, point, strict=True))) for point in points]

    def middle(self, settings: Settings) -> Settings:
        """Settings without a search."""
        return replace(settings, **{name: _middle(self.values(name)) for name in self.names})

    def values(self, name: str) -> tuple[Any, ...]:
        """What is tried of a setting."""
        return self.also[name] if name in self.also else getattr(self, name)


def _middle(values: tuple[float, ...]) -> float:
    return values[(len(values) - 1) // 2]


def search(
    grid: Grid | None, settings: Settings, norm: str, folder: Path, workers: int | None, progress: bool
) -> tuple[Settings, list[dict[str, Any]]]:
    """The settings that a grid picks for a norm, and what every point of the grid reached; None: the settings hold."""
    if grid is None:
        return settings, []
    candidates = grid.candidates(settings, norm)
    jobs = [trials.Job(candidate, norm, 0) for candidate in candidates]
    return pick(settings, candidates, trials.run(jobs, folder, workers, progress), grid.names)


def pick(
    settings: Settings,
    candidates: Sequence[Settings],
    records: Sequence[Mapping[str, Any]],
    names: Sequence[str] = SEARCHED,
) -> tuple[Settings, list[dict[str, Any]]]:
    """The settings with what the best candidate has, and what every candidate reached on held-out examples.

    Args:
        records: of each candidate, what ``train.train_network`` filled. A network that failed is not picked.
        names: the settings that were tried.
    """
    points = []
    for candidate, record in zip(candidates, records, strict=True):
        failed = "failed" in record
        accuracy = None if failed else record["epochs"][-1]["before"]["test_accuracy"]
        points.append({name: getattr(candidate, name) for name in names} | {"validation_accuracy": accuracy})
    best = max(points, key=lambda point: point["validation_accuracy"] or 0.0)
    return replace(settings, **{name: best[name] for name in names}), points
