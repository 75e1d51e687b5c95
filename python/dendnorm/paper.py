"""The paper's figures and its table: what each trains, the numbers that the paper prints, and the command's work."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import training, trials

__all__ = ["EXPERIMENTS", "Experiment", "Grid", "Panel", "collect"]


@dataclass(frozen=True)
class Grid:
    """An equal search for every norm: all pairs of a learning rate and an excitability, one trial each, the accuracy
    before rewiring on held-out training examples decides."""

    lr: tuple[float, ...]
    s: tuple[float, ...]
    epochs: int = 2
    validation: int = 10_000
    seed: int = 10_000  # not one of the trials that follow

    def candidates(self, settings: training.Settings) -> list[training.Settings]:
        return [
            replace(settings, lr=lr, s=s, epochs=self.epochs, validation=self.validation, seed=self.seed, trials=1,
                    inspect=())
            for lr, s in itertools.product(self.lr, self.s)
        ]  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One network on one data set."""

    title: str
    settings: training.Settings
    grid: Grid | None = None  # None: the settings hold for every norm
    published: dict[str, float] = field(default_factory=dict)  # test accuracy in %, by norm


@dataclass(frozen=True)
class Experiment:
    """One figure or table."""

    title: str
    draw: str  # how its picture is laid out: the name of a function of ``plots``
    claim: str  # what the paper says it shows
    panels: tuple[Panel, ...]


_BASE = training.Settings(data="fashion-mnist", trials=5)
_NAMES = {"mnist": "digits (MNIST)", "fashion-mnist": "fashion"}
_INSIDE = Panel(
    "784-100-10, MNIST", replace(_BASE, data="mnist", trials=3, inspect=(0, 1, 5, 10)))  # fmt: skip
_ORDERS = (1, 2, 3, 4, 5)
_GRID = Grid(lr=(0.01, 0.03, 0.1, 0.3, 1.0), s=(8.0, 25.0))
_TABLE = training.Settings(
    hidden=(1000, 1000, 1000), epsilon=0.04, activation="relu", batch=100, momentum=0.9, weight_decay=0.0002, dropout=0.3,
    schedule="cosine", matched=True, trials=2)  # fmt: skip

EXPERIMENTS: dict[str, Experiment] = {
    "1D": Experiment(
        "Learning with and without dendritic normalisation",
        "learning",
        "Networks learn faster and reach a better accuracy with dendritic normalisation.",
        tuple(
            Panel(f"{_NAMES[data]}, M = {hidden}", replace(_BASE, data=data, hidden=(hidden,)))
            for hidden in (30, 100, 300)
            for data in ("mnist", "fashion-mnist")
        ),
    ),
    "2A": Experiment(
        "Efferent connections of each pixel",
        "efferents",
        "Connections gather on the informative pixels, in both networks.",
        (_INSIDE,),
    ),
    "2B": Experiment(
        "Afferents of the hidden neurons",
        "afferents",
        "With normalisation the number of afferents varies more between neurons, weights are small, and the mean weighted"
        " input is spread less.",
        (_INSIDE,),
    ),
    "3C": Experiment(
        "Two and three sparse hidden layers",
        "learning",
        "The improvement holds for deeper networks, and grows with depth.",
        tuple(Panel(f"{depth} hidden layers of 100", replace(_BASE, hidden=(100,) * depth)) for depth in (2, 3)),
    ),
    "3D": Experiment(
        "A sparse layer after a convolution",
        "learning",
        "The improvement holds for a sparse layer behind convolution and max pooling.",
        (Panel("20 filters 5 x 5, max pooling, sparse 2880-100", replace(_BASE, convolution=20)),),
    ),
    "3E": Experiment(
        "Threshold-linear hidden units",
        "learning",
        "The improvement holds for units that do not saturate.",
        (Panel("784-100-10, ReLU", replace(_BASE, activation="relu")),),
    ),
    "3F": Experiment(
        "Dendritic, heterosynaptic and joint normalisation",
        "learning",
        "Dendritic normalisation is slightly better than heterosynaptic (83.75 % against 82.66 % after 50 epochs), and the"
        " joint one is worse than either.",
        (
            Panel(
                "784-100-10",
                replace(_BASE, epochs=50, norms=("l0", "weight_norm", "joint")),
                published={"l0": 83.75, "weight_norm": 82.66},
            ),
        ),
    ),
    "3G": Experiment(
        "Orders of the norm",
        "orders",
        "Accuracy is best for p near 0.",
        (
            Panel(
                "784-100-10",
                replace(
                    _BASE,
                    epochs=20,
                    trials=3,
                    norms=("l0", *(f"lp:{p}" for p in _ORDERS), "l0-variable", *(f"lp-variable:{p}" for p in _ORDERS)),
                ),  # fmt: skip
            ),
        ),
    ),
    "table1": Experiment(
        "Test accuracy beside the published figures",
        "learning",
        "Dendritic normalisation improves on the published controls on MNIST, Fashion-MNIST and CIFAR-10, and comes close on"
        " COIL-100.",
        (
            Panel(
                "MNIST, 784-1000-1000-1000-10, 4 %", replace(_TABLE, data="mnist"), _GRID, {"none": 98.74, "l0": 99.63}
            ),
            Panel(
                "Fashion-MNIST, 784-200-200-200-10, 20 %",
                replace(_TABLE, data="fashion-mnist", hidden=(200, 200, 200), epsilon=0.2),
                _GRID,
                {"none": 89.01, "l0": 92.23},
            ),
            Panel(
                "CIFAR-10, 3072-1000-1000-1000-10, 4 %",
                replace(_TABLE, data="cifar10"),
                _GRID,
                {"none": 74.84, "l0": 77.43},
            ),
        ),
    ),
}


def _chosen(
    panel: Panel, norm: str, folder: Path, workers: int | None, progress: bool
) -> tuple[training.Settings, list[dict[str, Any]]]:
    """The settings that a panel's grid picks for a norm, and what every point of the grid reached."""
    if panel.grid is None:
        return panel.settings, []
    candidates = panel.grid.candidates(panel.settings)
    jobs = [trials.Job(settings, norm, 0) for settings in candidates]
    points = []
    for settings, record in zip(candidates, trials.run(jobs, folder, workers, progress), strict=True):
        failed = "failed" in record
        accuracy = None if failed else record["epochs"][-1]["before"]["test_accuracy"]
        points.append({"lr": settings.lr, "s": settings.s, "validation_accuracy": accuracy})
    best = max(points, key=lambda point: point["validation_accuracy"] or 0.0)
    return replace(panel.settings, lr=best["lr"], s=best["s"]), points


def collect(
    panels: Sequence[Panel], folder: str | Path, workers: int | None = None, progress: bool = True
) -> list[dict[str, Any]]:
    """Train what panels need and has no file in `folder` yet.

    Returns:
        for each panel "title", "settings", "published", "runs" (records), and where it has a grid "chosen" and "grid" by norm.

    Raises:
        as ``trials.run``.
    """
    folder = Path(folder)
    picked = [
        {norm: _chosen(panel, norm, folder, workers, progress) for norm in panel.settings.norms} for panel in panels
    ]
    jobs = [
        [
            trials.Job(settings, norm, trial)
            for trial in range(settings.trials)
            for norm, (settings, _) in chosen.items()
        ]
        for chosen in picked
    ]
    # All panels at once: no core waits at the end of one.
    records = iter(trials.run([job for panel_jobs in jobs for job in panel_jobs], folder, workers, progress))
    results = []
    for panel, chosen, panel_jobs in zip(panels, picked, jobs, strict=True):
        result = training.describe_settings(panel.settings) | {"title": panel.title, "published": panel.published}
        result["runs"] = [next(records) for _ in panel_jobs]
        if panel.grid is not None:
            result["chosen"] = {norm: {"lr": s.lr, "s": s.s} for norm, (s, _) in chosen.items()}
            result["grid"] = {norm: points for norm, (_, points) in chosen.items()}
        results.append(result)
    return results
