"""The job of ``dendnorm paper``: train what a figure needs and has not got, and write numbers, table and picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..._extras import require
from ...analysis.style import save
from .. import trials as trial_runner
from ..asked import answers, available, of_data
from ..report import open_folder, write_text
from ..results import summarise
from ..search import SEARCHED, search
from .catalogue import EXPERIMENTS, Panel
from .figures import FIGURES
from .tables import table

__all__ = ["collect", "run"]


def collect(
    panels: Sequence[Panel], folder: str | Path, workers: int | None = None, progress: bool = True
) -> list[dict[str, Any]]:
    """Train what panels need and has no file in `folder` yet.

    Returns:
        for each panel "title", "settings", "published", "runs" (records), "summary" (``results.summarise``), and where
        it has a grid "chosen" and "grid" by norm.

    Raises:
        as ``trials.run``.
    """
    folder = Path(folder)
    picked = [
        {norm: search(panel.grid, panel.settings, norm, folder, workers, progress) for norm in panel.settings.norms}
        for panel in panels
    ]
    jobs = [
        [
            trial_runner.Job(settings, norm, n)
            for n in range(panel.settings.trials)
            for norm, (settings, _) in chosen.items()
        ]
        for panel, chosen in zip(panels, picked, strict=True)
    ]
    # All panels at once: no core waits at the end of one.
    records = iter(trial_runner.run([job for panel_jobs in jobs for job in panel_jobs], folder, workers, progress))
    results = []
    for panel, chosen, panel_jobs in zip(panels, picked, jobs, strict=True):
        result = _described(panel) | {"runs": [next(records) for _ in panel_jobs]}
        result["summary"] = summarise(result)
        if panel.grid is not None:
            result["chosen"] = {
                norm: {name: getattr(picked, name) for name in SEARCHED} for norm, (picked, _) in chosen.items()
            }
            result["grid"] = {norm: points for norm, (_, points) in chosen.items()}
        results.append(result)
    return results


def _described(panel: Panel) -> dict[str, Any]:
    """What results say of a panel before anything is trained."""
    return {"title": panel.title, "settings": panel.settings.recorded(), "published": panel.published}


def _quick(panel: Panel) -> Panel:
    # Many networks: one epoch each.
    epochs = 2 if len(panel.settings.norms) < 5 else 1
    inspect = (0, epochs) if panel.settings.inspect else ()
    settings = replace(panel.settings, trials=1, epochs=epochs, inspect=inspect)
    if panel.grid is not None:
        settings = panel.grid.middle(settings)
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
    panels = of_data(name, EXPERIMENTS[name].panels, data)
    wanted = []
    for panel in map(_quick, panels) if quick else panels:
        length = panel.settings.epochs if epochs is None else epochs
        settings = replace(
            panel.settings,
            root=None if root is None else str(root),
            trials=panel.settings.trials if trials is None else trials,
            epochs=length,
            inspect=tuple(epoch for epoch in panel.settings.inspect if epoch <= length),
        )
        wanted.append(replace(panel, settings=settings))
    return available(wanted)


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
    overwrite: bool = False,
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
        overwrite: results of another request, which NAME.json holds, may be replaced.

    Returns:
        what NAME.json holds. The same for an interrupted run that was taken up again as for one that was not.

    Raises:
        ValueError: a name or a data set that is not there.
        FileNotFoundError: none of the data is there.
        FileExistsError: `out` holds results that another request gave, and they may not be overwritten.
        RuntimeError, data.DataFileError: as ``trials.run``.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"name must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    require("tqdm", "train")
    require("matplotlib.figure", "train")
    experiment = EXPERIMENTS[name]
    present, missing = _wanted(name, root, data, trials, epochs, quick)
    request: dict[str, Any] = {
        "name": name,
        "title": experiment.title,
        "claim": experiment.claim,
        "quick": quick,
        "torch": torch.__version__,
        "missing": missing,
        "panels": [_described(panel) for panel in present],
    }
    out = open_folder(out, f"{name}.json", overwrite or answers(Path(out) / f"{name}.json", request))
    results = request | {"panels": collect(present, out / "trials", workers, progress)}
    write_text(out / f"{name}.json", json.dumps(results, indent=1))
    write_text(out / f"{name}.md", table(results))
    save(FIGURES[experiment.layout](results), out / f"{name}.png")
    return results
