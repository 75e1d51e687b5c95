"""The job of ``dendnorm study``: train what a study needs and has not got, and write numbers, tables and picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..._extras import require
from ...analysis.style import save
from ..asked import answers, available, of_data
from ..report import open_folder, write_text
from .catalogue import STUDIES, Panel, Study
from .clock import measure
from .collect import collect, compare, described
from .pictures import PICTURES
from .tables import comparisons_csv, table

__all__ = ["run"]

QUICK_EPOCHS, QUICK_TRIALS = 2, 3


def _quick(study: Study, root: Path | str | None) -> Study:
    """A study small enough to see that it works: no search; without a folder of data, the bundled digits."""
    panels: dict[str, Panel] = {}
    for panel in study.panels:
        settings = replace(panel.settings, trials=QUICK_TRIALS, epochs=QUICK_EPOCHS, sample=100)
        title = panel.title
        if root is None:
            settings = replace(settings, data="digits", batch=10)
            title = "digits, " + title.partition(", ")[2]
        panels.setdefault(title, Panel(title, settings))
    grid = study.grid
    # Rates that suit minibatches of 10 and of 100 alike, at the middle of every other setting.
    one = {name: (grid.values(name)[(len(grid.values(name)) - 1) // 2],) for name in grid.also}
    return replace(study, panels=tuple(panels.values()), grid=replace(grid, lr=(0.1,), also=one))


def _wanted(
    name: str,
    root: str | Path | None,
    data: Sequence[str] | None,
    densities: Sequence[float] | None,
    trials: int | None,
    epochs: int | None,
    quick: bool,
) -> tuple[Study, list[Panel], list[str]]:
    """The study and its panels as asked for, and the titles of those whose data are not there."""
    study = _quick(STUDIES[name], root) if quick else STUDIES[name]
    panels = of_data(name, study.panels, data)
    if densities is not None:
        had = sorted({panel.settings.epsilon for panel in panels})
        panels = [panel for panel in panels if panel.settings.epsilon in densities]
        if not panels:
            raise ValueError(
                f"density must be among those of {name} ({', '.join(f'{one:g}' for one in had)}), got"
                f" {', '.join(f'{one:g}' for one in densities)}"
            )
    given: dict[str, Any] = {"root": None if root is None else str(root)}
    given |= {} if trials is None else {"trials": trials}
    given |= {} if epochs is None else {"epochs": epochs}
    present, missing = available(replace(panel, settings=replace(panel.settings, **given)) for panel in panels)
    return study, present, missing


def _without_nan(value: Any) -> Any:
    """The same with None for what too few trials tell nothing about: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def run(
    name: str,
    out: str | Path,
    root: str | Path | None = None,
    data: Sequence[str] | None = None,
    densities: Sequence[float] | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    quick: bool = False,
    same: bool = False,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make one study: train what has not been trained, and write NAME.json, NAME.md, NAME.csv and NAME.png.

    Args:
        name: one of ``STUDIES``.
        out: the results; its folder "trials" keeps every finished trial, and NAME-times.json what a step took.
        root: folder that holds the folders of the data sets.
        data, densities: only panels of these.
        trials, epochs: in place of the study's own.
        quick: three trials, two epochs and no search, which the picture and the table say; without `root` on digits.
        same: every network has the one point of the grid that is best for the mean of all, and not its own.
        workers: processes; left out: one for each core.
        overwrite: results of another request, which NAME.json holds, may be replaced.

    Returns:
        what NAME.json holds, and "times". NAME.json is the same for a run that was killed and taken up again as for
        one that was not.

    Raises:
        ValueError: a name, a data set or a density that is not there.
        FileNotFoundError: none of the data is there.
        FileExistsError: `out` holds results that another request gave, and they may not be overwritten.
        RuntimeError, data.DataFileError: as ``trials.run``.
    """
    if name not in STUDIES:
        raise ValueError(f"name must be one of {', '.join(STUDIES)}, got {name!r}")
    for package in ("tqdm", "matplotlib.figure", "scipy.stats"):
        require(package, "train")
    study, present, missing = _wanted(name, root, data, densities, trials, epochs, quick)
    study = replace(study, same=same)
    request: dict[str, Any] = {
        "name": name,
        "title": study.title,
        "question": study.question,
        "quick": quick,
        "same": same,
        "torch": torch.__version__,
        "missing": missing,
        "panels": [described(study, panel) for panel in present],
    }
    path = Path(out) / f"{name}.json"
    out = open_folder(out, path.name, overwrite or answers(path, request))
    panels = collect(study, present, out / "trials", workers, progress)
    results = request | {"panels": panels, "comparisons": compare(study, panels)}
    write_text(out / path.name, json.dumps(_without_nan(results), indent=1, allow_nan=False))
    if study.timed:
        results = results | {"times": measure(study, present, panels, out / f"{name}-times.json")}
    write_text(out / f"{name}.md", table(results))
    write_text(out / f"{name}.csv", comparisons_csv(results))
    save(PICTURES[study.layout](results), out / f"{name}.png")
    return results
