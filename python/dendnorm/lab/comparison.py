"""The job of ``dendnorm train``: the same sparse network under several norms, side by side, over several trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .._extras import require
from ..analysis.style import save
from . import data as data_module
from .curves import curves
from .device import choose_device
from .report import open_folder, write_text
from .results import describe, new_record, summarise, table
from .settings import Settings
from .train import load_data, steps_of_epoch, train_network

__all__ = ["RESULTS", "run", "write"]

RESULTS = "results.json"


def run(settings: Settings, out: str | Path, progress: bool = True, overwrite: bool = False) -> dict[str, Any]:
    """Train every norm in every trial and write results.json, table.md and curves.png into `out`.

    Norms take turns within a trial, so that an interruption leaves about as many trials of each. After Ctrl-C the
    finished epochs are written and the results say "interrupted": true. A network whose cost stops being finite is
    kept with its reason under "failed", and the others go on.

    Returns:
        what results.json holds.

    Raises:
        ValueError, OSError, ImportError: before anything is trained; FileExistsError where `out` holds results and
            they may not be overwritten.
    """
    device = choose_device(settings.device)  # first: what is missing may be installed, a GPU may not
    require("tqdm", "train")
    require("matplotlib.figure", "train")
    data = load_data(settings, device)
    out = open_folder(out, RESULTS, overwrite)
    results: dict[str, Any] = {
        "settings": settings.recorded() | {"device": str(device), "threads": torch.get_num_threads()},
        "network": [data.features, *settings.hidden, len(data.classes)],
        "examples": {"train": len(data.train_targets), "test": len(data.test_targets)},
        "torch": torch.__version__,
        "interrupted": False,
        "runs": [],
    }
    try:
        for trial in range(settings.trials):
            for norm in settings.norms:
                record = new_record(settings, norm, trial)
                results["runs"].append(record)
                try:
                    _train_with_bar(record, data, settings, device, progress)
                except FloatingPointError as error:
                    record["failed"] = str(error)
                write_text(out / RESULTS, json.dumps(results, indent=1))
    except KeyboardInterrupt:
        results["interrupted"] = True
    write(results, out)
    return results


def write(results: dict[str, Any], out: str | Path) -> None:
    """Write results.json, table.md and curves.png; each appears whole or not at all."""
    out = Path(out)
    summary = summarise(results)
    write_text(out / RESULTS, json.dumps(results | {"summary": summary}, indent=1))
    write_text(out / "table.md", table(results, summary))
    if summary:
        save(curves(results, summary, describe(results)), out / "curves.png")
    else:  # of what was overwritten
        (out / "curves.png").unlink(missing_ok=True)


def _train_with_bar(
    record: dict[str, Any], data: data_module.DataSet, settings: Settings, device: torch.device, progress: bool
) -> None:
    tqdm = require("tqdm", "train").tqdm
    name = f"{record['label']}, trial {record['trial'] + 1}/{settings.trials}"
    shown: dict[str, str] = {}
    total = settings.epochs * steps_of_epoch(data, settings)
    with tqdm(total=total, desc=name, unit="step", disable=not progress, dynamic_ncols=True) as bar:

        def tick(done: int, loss: float) -> None:
            shown["loss"] = f"{loss:.3f}"
            bar.set_postfix(shown, refresh=False)
            bar.update(done)

        def finished(entry: dict[str, Any]) -> None:
            shown["accuracy"] = f"{entry['before']['test_accuracy']:.2%}"
            bar.set_postfix(shown)

        train_network(record, data, settings, device, tick, finished)
