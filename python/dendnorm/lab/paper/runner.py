"""The paper's figures and its table: what each trains, the numbers that the paper prints, and the command's work."""

from __future__ import annotations

import itertools
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import data as data_module
from . import paper_plots, training, trials
from .report import markdown_table, write_text

__all__ = ["EXPERIMENTS", "Experiment", "Grid", "Panel", "collect", "run", "table"]


SEARCHED = ("lr", "s", "dropout")  # the settings that a grid chooses


@dataclass(frozen=True)
class Grid:
    """The same search for every norm: all combinations of a learning rate, an excitability (of those that have one) and
    a share that is dropped out, one trial each; the accuracy before rewiring on held-out training examples decides."""

    lr: tuple[float, ...]
    s: tuple[float, ...]
    dropout: tuple[float, ...] = (0.0,)
    epochs: int = 2
    validation: int = 10_000
    seed: int = 10_000  # not one of the trials that follow

    def candidates(self, settings: training.Settings, norm: str) -> list[training.Settings]:
        """Every point, with one s where there is none to choose."""
        excitabilities = self.s if norm != "none" else (settings.s,)
        search = replace(settings, epochs=self.epochs, validation=self.validation, seed=self.seed, trials=1, inspect=())
        points = itertools.product(self.lr, excitabilities, self.dropout)
        return [replace(search, lr=lr, s=s, dropout=dropout) for lr, s, dropout in points]


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
    draw: str  # how its picture is laid out: the name of a function of ``paper_plots``
    claim: str  # what the paper says it shows
    panels: tuple[Panel, ...]


_BASE = training.Settings(data="fashion-mnist", trials=5)
_NAMES = {"mnist": "digits (MNIST)", "fashion-mnist": "fashion"}
_FIRST = tuple(
    Panel(f"{_NAMES[data]}, M = {hidden}", replace(_BASE, data=data, hidden=(hidden,)))
    for hidden in (30, 100, 300)
    for data in ("mnist", "fashion-mnist")
)
_INSIDE = Panel("784-100-10, MNIST", replace(_BASE, data="mnist", trials=3, inspect=(0, 1, 5, 10)))
_ORDERS = (1, 2, 3, 4, 5)
_NORMS = ("l0", *(f"lp:{p}" for p in _ORDERS), "l0-variable", *(f"lp-variable:{p}" for p in _ORDERS))
_GRID = Grid(lr=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0), s=(8.0, 25.0, 80.0, 160.0))
_TABLE_GRID = Grid(lr=(0.03, 0.1, 0.3, 1.0), s=(25.0, 50.0, 100.0, 200.0), dropout=(0.0, 0.3), epochs=8)
# No decay of weights: for w = (s / n) v, that of v is one of w that is (n / s)^2 times as strong.
_TABLE = training.Settings(hidden=(1000, 1000, 1000), epsilon=0.04, activation="relu", batch=100, momentum=0.9,
                           schedule="cosine", zeta_schedule="cosine", matched=True, trials=2, epochs=60)  # fmt: skip

EXPERIMENTS: dict[str, Experiment] = {
    "1D": Experiment(
        "Learning with and without dendritic normalisation",
        "learning",
        "With dendritic normalisation the cost falls faster and the accuracy is higher, for every width and both data"
        " sets, and trials differ less.",
        _FIRST,
    ),
    "1D-tuned": Experiment(
        "Each norm with the learning rate and excitability that suit it",
        "learning",
        "The same claim, on an equal search for both networks (not in the paper, which gives one learning rate).",
        tuple(replace(panel, grid=_GRID) for panel in _FIRST),
    ),
    "2A": Experiment(
        "Efferent connections of each pixel",
        "efferents",
        "Connections gather on the pixels in the middle, less so with normalisation.",
        (_INSIDE,),
    ),
    "2B": Experiment(
        "Afferents of the hidden neurons",
        "afferents",
        "With normalisation the number of afferents varies less between neurons, weights are smaller and less spread,"
        " and mean weighted inputs lie closer together.",
        (_INSIDE,),
    ),
    "3C": Experiment(
        "Two and three sparse hidden layers",
        "learning",
        "The improvement holds for deeper networks, and seems to grow with their complexity.",
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
        "Dendritic normalisation is slightly better than heterosynaptic (83.75 % against 82.66 % after 50 epochs), and"
        " the joint one hardly improves after its first epoch.",
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
        "p = 0 with one excitability for all is best after 10 epochs, p = 1 with one for each neuron close to it;"
        " elsewhere one for all is better, the more so the higher p.",
        (
            Panel(
                "784-100-10",
                replace(_BASE, epochs=20, trials=3, norms=_NORMS),
            ),
        ),
    ),
    "table1": Experiment(
        "Test accuracy beside the published figures",
        "learning",
        "Dendritic normalisation improves on the published controls on MNIST, Fashion-MNIST and CIFAR-10, and comes"
        " close on COIL-100.",
        (
            Panel(
                "MNIST, 784-1000-1000-1000-10, 4 %",
                replace(_TABLE, data="mnist"),
                _TABLE_GRID,
                {"none": 98.74, "l0": 99.63},
            ),
            Panel(
                "Fashion-MNIST, 784-200-200-200-10, 20 %",
                replace(_TABLE, data="fashion-mnist", hidden=(200, 200, 200), epsilon=0.2),
                _TABLE_GRID,
                {"none": 89.01, "l0": 92.23},
            ),
            Panel(
                "CIFAR-10, 3072-1000-1000-1000-10, 4 %",
                replace(_TABLE, data="cifar10"),
                _TABLE_GRID,
                {"none": 74.84, "l0": 77.43},
            ),
            Panel(
                "COIL-100, 1024-1000-1000-1000-100, 4 %",
                replace(_TABLE, data="coil100"),
                replace(_TABLE_GRID, validation=1000),
                {"none": 98.68, "l0": 98.47},
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
    candidates = panel.grid.candidates(panel.settings, norm)
    jobs = [trials.Job(settings, norm, 0) for settings in candidates]
    points = []
    for settings, record in zip(candidates, trials.run(jobs, folder, workers, progress), strict=True):
        failed = "failed" in record
        accuracy = None if failed else record["epochs"][-1]["before"]["test_accuracy"]
        points.append({name: getattr(settings, name) for name in SEARCHED} | {"validation_accuracy": accuracy})
    best = max(points, key=lambda point: point["validation_accuracy"] or 0.0)
    return replace(panel.settings, **{name: best[name] for name in SEARCHED}), points


def collect(
    panels: Sequence[Panel], folder: str | Path, workers: int | None = None, progress: bool = True
) -> list[dict[str, Any]]:
    """Train what panels need and has no file in `folder` yet.

    Returns:
        for each panel "title", "settings", "published", "runs" (records), "summary" (``training.summarise``), and where
        it has a grid "chosen" and "grid" by norm.

    Raises:
        as ``trials.run``.
    """
    folder = Path(folder)
    picked = [
        {norm: _chosen(panel, norm, folder, workers, progress) for norm in panel.settings.norms} for panel in panels
    ]
    jobs = [
        [trials.Job(settings, norm, n) for n in range(panel.settings.trials) for norm, (settings, _) in chosen.items()]
        for panel, chosen in zip(panels, picked, strict=True)
    ]
    # All panels at once: no core waits at the end of one.
    records = iter(trials.run([job for panel_jobs in jobs for job in panel_jobs], folder, workers, progress))
    results = []
    for panel, chosen, panel_jobs in zip(panels, picked, jobs, strict=True):
        settings = asdict(panel.settings)
        settings.pop("root")  # a path of one machine says nothing on another
        runs = [next(records) for _ in panel_jobs]
        result = {"title": panel.title, "settings": settings, "published": panel.published, "runs": runs}
        result["summary"] = training.summarise(result)
        if panel.grid is not None:
            result["chosen"] = {
                norm: {name: getattr(picked, name) for name in SEARCHED} for norm, (picked, _) in chosen.items()
            }
            result["grid"] = {norm: points for norm, (_, points) in chosen.items()}
        results.append(result)
    return results


def _quick(panel: Panel) -> Panel:
    # Many networks: one epoch each.
    epochs = 2 if len(panel.settings.norms) < 5 else 1
    inspect = (0, epochs) if panel.settings.inspect else ()
    settings = replace(panel.settings, trials=1, epochs=epochs, inspect=inspect)
    if panel.grid is not None:  # its middle instead of a search
        middle = {name: getattr(panel.grid, name) for name in SEARCHED}
        settings = replace(settings, **{name: values[(len(values) - 1) // 2] for name, values in middle.items()})
    return replace(panel, settings=settings, grid=None)


def _wanted(
    name: str,
    root: str | Path | None,
    data: Sequence[str] | None,
    trials: int | None,
    epochs: int | None,
    quick: bool,
) -> tuple[list[Panel], list[str]]:
    """The panels to train, as asked for, and the titles of those whose data are not there."""
    panels = [panel for panel in EXPERIMENTS[name].panels if data is None or panel.settings.data in data]
    if not panels:
        had = ", ".join(sorted({panel.settings.data for panel in EXPERIMENTS[name].panels}))
        raise ValueError(f"data must be among those of {name} ({had}), got {', '.join(data or ())}")
    present, missing = [], {}
    for panel in map(_quick, panels) if quick else panels:
        length = panel.settings.epochs if epochs is None else epochs
        settings = replace(
            panel.settings,
            root=None if root is None else str(root),
            trials=panel.settings.trials if trials is None else trials,
            epochs=length,
            inspect=tuple(epoch for epoch in panel.settings.inspect if epoch <= length),
        )
        try:
            data_module.locate(settings.data, settings.root)
            present.append(replace(panel, settings=settings))
        except FileNotFoundError as error:
            missing[panel.title] = error
    if not present:
        raise next(iter(missing.values()))
    return present, list(missing)


def run(
    name: str,
    out: str | Path,
    root: str | Path | None = None,
    data: Sequence[str] | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    quick: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Reproduce one figure or table: train what has not been trained, and write NAME.json, NAME.md and NAME.png.

    Args:
        name: one of ``EXPERIMENTS``.
        out: the results; its folder "trials" keeps every finished trial.
        root: folder that holds the folders of the data sets.
        data: only panels of these data sets.
        trials, epochs: in place of the experiment's own.
        quick: one trial, one or two epochs and no search, which the picture and the table say.
        workers: processes; left out: one for each core.

    Returns:
        what NAME.json holds. The same for an interrupted run that was taken up again as for one that was not.

    Raises:
        ValueError: a name or a data set that is not there.
        FileNotFoundError: none of the data is there.
        RuntimeError, dendnorm.data.DataFileError: as ``dendnorm.trials.run``.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"name must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    experiment = EXPERIMENTS[name]
    present, missing = _wanted(name, root, data, trials, epochs, quick)
    out = Path(out)
    results: dict[str, Any] = {
        "name": name,
        "title": experiment.title,
        "claim": experiment.claim,
        "quick": quick,
        "torch": torch.__version__,
        "missing": missing,
        "panels": collect(present, out / "trials", workers, progress),
    }
    write_text(out / f"{name}.json", json.dumps(results, indent=1))
    write_text(out / f"{name}.md", table(results))
    temporary = out / f"{name}.tmp.png"
    getattr(paper_plots, experiment.draw)(results, temporary)
    os.replace(temporary, out / f"{name}.png")
    return results


def _spread(values: Sequence[float], digits: int = 2) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def _cell(values: dict[str, list[float]], epoch: int, factor: int, digits: int) -> str:
    """Mean and deviation that ``training.summarise`` has for an epoch; -1: the last."""
    return f"{factor * values['mean'][epoch]:.{digits}f} ± {factor * values['std'][epoch]:.{digits}f}"


def _learning_table(results: dict[str, Any]) -> list[str]:
    head = ["network", "norm", *SEARCHED, "trials", "epochs", "accuracy before rewiring, %", "after, %"]
    head += ["training cost before", "after", "paper, %"]
    rows = []
    for panel in results["panels"]:
        for norm, entry in panel["summary"].items():
            chosen = panel.get("chosen", {}).get(norm, panel["settings"])
            cells = [panel["title"], entry["label"], *(f"{chosen[name]:g}" for name in SEARCHED)]
            cells += [str(entry["trials"]), str(len(entry["epochs"]))]
            cells += [_cell(entry[phase]["test_accuracy"], -1, 100, 2) for phase in training.PHASES]
            cells += [_cell(entry[phase]["train_cost"], -1, 1, 4) for phase in training.PHASES]
            published = panel["published"].get(norm)
            rows.append([*cells, "" if published is None else f"{published:.2f}"])
    return markdown_table(head, rows)


def _inside_table(results: dict[str, Any]) -> list[str]:
    """Numbers of both parts of figure 2, mean and standard deviation over trials."""
    head = ["norm", "epoch", "trials", "connections from the middle 14 x 14 pixels, %"]
    head += ["deviation of afferents", "of weights", "of mean weighted inputs"]
    (panel,) = results["panels"]
    rows = []
    for norm, records in paper_plots.finished(panel).items():
        for index, epoch in enumerate(look["epoch"] for look in records[0]["inside"]):
            looks = [record["inside"][index] for record in records]
            efferents = [torch.tensor(look["efferents"], dtype=torch.float64).view(28, 28) for look in looks]
            middle = [100 * (image[7:21, 7:21].sum() / image.sum()).item() for image in efferents]
            cells = [training.label(norm), str(epoch), str(len(looks)), _spread(middle)]
            for key in ("afferents", "weights", "weighted_input"):
                cells.append(_spread([statistics.pstdev(look[key]) for look in looks], 3))
            rows.append(cells)
    return markdown_table(head, rows)


def _orders_table(results: dict[str, Any]) -> list[str]:
    (panel,) = results["panels"]
    marks = paper_plots.marks(panel)
    head = ["norm", "trials", *(f"epoch {epoch}, {phase}, %" for epoch in marks for phase in training.PHASES)]
    rows = [
        [entry["label"], str(entry["trials"])]
        + [_cell(entry[phase]["test_accuracy"], epoch - 1, 100, 2) for epoch in marks for phase in training.PHASES]
        for entry in panel["summary"].values()
    ]
    return markdown_table(head, rows)


_TABLES = {
    "learning": _learning_table,
    "efferents": _inside_table,
    "afferents": _inside_table,
    "orders": _orders_table,
}


def table(results: dict[str, Any]) -> str:
    """Markdown: what was reached, mean and standard deviation over trials, beside the paper's numbers."""
    experiment = EXPERIMENTS[results["name"]]
    lines = [f"# {results['name']}: {results['title']}", "", f"The paper: {results['claim']}", ""]
    settings = results["panels"][0]["settings"]
    lines.append(
        f"{settings['activation']} units, {training.optimiser(settings)}, minibatch {settings['batch']},"
        f" {settings['schedule']} learning rate, {settings['zeta']:.0%} rewired after each epoch"
        f" ({settings['zeta_schedule']}), seeds {settings['seed']} to"
        f" {settings['seed'] + settings['trials'] - 1}. Last epoch, test data, mean and standard deviation over trials."
    )
    if results["quick"]:
        lines += ["", "**Quick: one trial, one or two epochs. This shows that it works, and reproduces nothing.**"]
    lines += ["", *_TABLES[experiment.draw](results)]
    for panel in results["panels"]:
        for record in panel["runs"]:
            if "failed" in record:
                failed = f"{panel['title']}, {record['label']}, trial {record['trial'] + 1}"
                lines += ["", f"Failed: {failed}: {record['failed']}."]
    for title in results["missing"]:
        where = f" COIL-100 is at {data_module.COIL_SOURCE}." if title.startswith("COIL") else ""
        lines += ["", f"Not measured: {title}; its data are not in the folder given.{where}"]
    return "\n".join(lines) + "\n"
