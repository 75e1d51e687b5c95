"""The job of ``dendnorm demo``: choose a learning rate for each network, train it, and write what came."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..._extras import require
from ...analysis.style import save
from ...models.summary import summary as cost_of
from .. import data as data_module
from ..device import choose_device
from ..report import open_folder, write_text
from ..results import new_record, summarise
from ..search import Grid, pick
from ..settings import Settings
from ..train import load_data, steps_of_epoch, train_network
from .networks import NETWORKS, build_network
from .picture import picture
from .tables import table

__all__ = ["RESULTS", "run"]

RESULTS = "results.json"


def run(
    sizes: Sequence[Settings], grid: Grid, out: str | Path, progress: bool = True, overwrite: bool = False
) -> dict[str, Any]:
    """Train every kind of network in every size and write results.json, table.md and curves.png into `out`.

    Each network trains at the learning rate of the grid that was best for it on held-out training images; the test
    images are looked at after that. After Ctrl-C the finished epochs are written, and the results say so.

    Args:
        sizes: of one data set.
        grid: its validation is capped at a fifth of the training images.

    Returns:
        what results.json holds: for each size "network", "settings", and by kind of network "chosen", "grid", "costs"
        and "summary" (``results.summarise``), and "runs" (records).

    Raises:
        ValueError, OSError, ImportError: before anything is trained; FileExistsError where `out` holds results and
            they may not be overwritten.
    """
    device = choose_device(sizes[0].device)
    tqdm = require("tqdm", "train").tqdm
    require("matplotlib.figure", "train")
    data = load_data(sizes[0], device)
    grid = replace(grid, validation=min(grid.validation, len(data.train_targets) // 5))
    held_out = data_module.hold_out(data, grid.validation)
    out = open_folder(out, RESULTS, overwrite)
    results: dict[str, Any] = {
        "examples": {"train": len(data.train_targets), "validation": grid.validation, "test": len(data.test_targets)},
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "interrupted": False,
        "sizes": [_described(settings, data) for settings in sizes],
    }
    total = sum(_steps(settings, grid, data, held_out) for settings in sizes)
    with tqdm(total=total, unit="step", disable=not progress, dynamic_ncols=True) as bar:
        try:
            for settings, size in zip(sizes, results["sizes"], strict=True):
                bar.set_description(f"{size['network']}: learning rates")
                chosen = {kind: _search(size, kind, settings, grid, held_out, device, bar) for kind in NETWORKS}
                for trial in range(settings.trials):
                    bar.set_description(f"{size['network']}: trial {trial + 1}/{settings.trials}")
                    for kind, own in chosen.items():
                        record = new_record(settings, kind, trial) | {"label": NETWORKS[kind]}
                        size["runs"].append(record)
                        _train(record, data, own, device, bar)
        except KeyboardInterrupt:
            results["interrupted"] = True
    for size in results["sizes"]:
        size["summary"] = summarise(size)
    _write(results, out)
    return results


def _described(settings: Settings, data: data_module.DataSet) -> dict[str, Any]:
    """What results say of a size before anything is trained."""
    costs = {}
    for kind in NETWORKS:
        rows = cost_of(build_network(data.image_shape, len(data.classes), settings, kind, 0))
        hidden = sum(row.connections for row in rows) - rows[-1].connections
        costs[kind] = {"connections": hidden, "multiply_adds": (rows.total.flops or 0) // 2}
    # A start by s, of which `train` tells, is not that of these networks; and each has its own learning rate.
    recorded = {name: value for name, value in settings.recorded().items() if name not in ("s", "matched", "lr")}
    recorded["norms"] = list(NETWORKS)
    network = "-".join(map(str, (data.features, *settings.hidden, len(data.classes))))
    return {"network": network, "settings": recorded, "costs": costs, "chosen": {}, "grid": {}, "runs": []}


def _steps(settings: Settings, grid: Grid, data: data_module.DataSet, held_out: data_module.DataSet) -> int:
    searched = len(grid.lr) * grid.epochs * steps_of_epoch(held_out, settings)
    return len(NETWORKS) * (searched + settings.trials * settings.epochs * steps_of_epoch(data, settings))


def _search(
    size: dict[str, Any],
    kind: str,
    settings: Settings,
    grid: Grid,
    held_out: data_module.DataSet,
    device: torch.device,
    bar: Any,
) -> Settings:
    """The settings with the learning rate that is best for a kind of network; `size` keeps what was tried."""
    candidates = grid.candidates(settings, "none")  # no s to choose
    records = [new_record(candidate, kind, 0) for candidate in candidates]
    for candidate, record in zip(candidates, records, strict=True):
        _train(record, held_out, candidate, device, bar)
    own, points = pick(settings, candidates, records)
    size["chosen"][kind] = own.lr
    size["grid"][kind] = [{name: point[name] for name in ("lr", "validation_accuracy")} for point in points]
    return own


def _train(
    record: dict[str, Any], data: data_module.DataSet, settings: Settings, device: torch.device, bar: Any
) -> None:
    """Train one network; one whose cost stops being finite keeps its reason, and the others go on."""
    ends = bar.n + settings.epochs * steps_of_epoch(data, settings)
    try:
        train_network(record, data, settings, device, lambda done, loss: bar.update(done), build=build_network)
    except FloatingPointError as error:
        record["failed"] = str(error)
        bar.update(ends - bar.n)


def _write(results: dict[str, Any], out: Path) -> None:
    write_text(out / RESULTS, json.dumps(results, indent=1))
    write_text(out / "table.md", table(results))
    if any(size["summary"] for size in results["sizes"]):
        save(picture(results), out / "curves.png", dpi=96)
    else:  # of what was overwritten
        (out / "curves.png").unlink(missing_ok=True)
