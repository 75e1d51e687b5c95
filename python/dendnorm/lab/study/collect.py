"""Train what a study needs and has not got: the search of every arm, then the paired trials of what it chose."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ...models.summary import summary as cost_of
from .. import trials
from ..networks import build_network
from ..search import SEARCHED, pick
from ..settings import Settings
from ..train import load_data
from .catalogue import AREA, LAST, Arm, Panel, Study
from .statistics import holm, paired

__all__ = ["collect", "compare", "described", "measured"]


def described(study: Study, panel: Panel) -> dict[str, Any]:
    """What results say of a panel before anything is trained."""
    settings = {name: value for name, value in panel.settings.recorded().items() if name not in (*SEARCHED, "norms")}
    arms = {arm.name: {"kind": arm.kind, "changes": dict(arm.changes)} for arm in study.arms}
    return {"title": panel.title, "settings": settings, "arms": arms}


def collect(study: Study, panels: Sequence[Panel], folder: Path, workers: int | None, progress: bool) -> list[dict]:
    """Train what has no file in `folder` yet.

    Returns:
        for each panel what ``described`` has, and for each arm "chosen", "at_an_end" (what was chosen at an end of the
        grid), "grid", "runs" and "costs".

    Raises:
        as ``trials.run``.
    """
    own = [(panel, arm, replace(panel.settings, **arm.changes)) for panel in panels for arm in study.arms]
    searched = [study.grid.candidates(settings, arm.kind) for _, arm, settings in own]
    tried = [trials.Job(one, arm.kind, 0)
             for (_, arm, _), ones in zip(own, searched, strict=True) for one in ones]  # fmt: skip
    records = iter(trials.run(tried, folder, workers, progress)) if _chooses(study) else itertools.repeat(None)
    jobs: list[trials.Job] = []
    choices: list[tuple[Settings, list[dict[str, Any]]]] = []
    for (_, _, settings), candidates in zip(own, searched, strict=True):
        if _chooses(study):
            found = [next(records) for _ in candidates]
            choices.append(pick(settings, candidates, found, study.grid.names))
        else:
            choices.append((study.grid.middle(settings), []))
    if study.same and _chooses(study):
        choices = _same(study, choices)
    for (_, arm, _), (settings, _) in zip(own, choices, strict=True):
        jobs += [trials.Job(settings, arm.kind, trial) for trial in range(settings.trials)]
    finished = iter(trials.run(jobs, folder, workers, progress))
    results = {panel.title: described(study, panel) for panel in panels}
    for (panel, arm, _), (settings, points) in zip(own, choices, strict=True):
        runs = [_run(next(finished)) for _ in range(settings.trials)]
        chosen = {name: getattr(settings, name) for name in _names(study)}
        entry = {"chosen": chosen, "at_an_end": _at_an_end(study, chosen), "grid": points, "runs": runs}
        results[panel.title]["arms"][arm.name] |= entry | {"costs": _costs(settings, arm)}
    return list(results.values())


def _same(study: Study, choices: list[tuple[Settings, list[dict[str, Any]]]]) -> list[tuple[Settings, list]]:
    """The choices with the point that is best for the mean of a panel's arms; a network that failed counts as 0."""
    one = []
    for start in range(0, len(choices), len(study.arms)):
        panel = choices[start : start + len(study.arms)]
        sums = [sum(point["validation_accuracy"] or 0.0 for point in points)
                for points in zip(*(points for _, points in panel), strict=True)]  # fmt: skip
        best = panel[0][1][max(range(len(sums)), key=sums.__getitem__)]
        chosen = {name: best[name] for name in study.grid.names}
        one += [(replace(settings, **chosen), points) for settings, points in panel]
    return one


def _names(study: Study) -> list[str]:
    """The settings of which there is something to choose."""
    return [name for name in study.grid.names if len(study.grid.values(name)) > 1]


def _chooses(study: Study) -> bool:
    return bool(_names(study))


def _at_an_end(study: Study, chosen: Mapping[str, Any]) -> list[str]:
    """Numbers that were chosen at an end of what was tried: there may be better ones."""
    ends = {name: study.grid.values(name) for name in chosen if isinstance(chosen[name], float)}
    return [name for name, values in ends.items() if chosen[name] in (min(values), max(values))]


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    """What results keep of a trial."""
    kept: dict[str, Any] = {"seed": record["seed"]}
    for phase in ("before", "after"):
        kept[phase] = [entry[phase]["test_accuracy"] for entry in record["epochs"]]
    return kept | {name: record[name] for name in ("failed", "moves") if name in record}


def _costs(settings: Settings, arm: Arm) -> dict[str, int]:
    """Connections and multiply-adds of a forward pass of one image, and parameters."""
    data = load_data(replace(settings, validation=0), torch.device("cpu"))
    model = build_network(data.image_shape, len(data.classes), settings, arm.kind, 0)
    rows = cost_of(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"connections": sum(row.connections for row in rows), "multiply_adds": (rows.total.flops or 0) // 2,
            "parameters": parameters}  # fmt: skip


def measured(run: Mapping[str, Any], measure: int | str) -> float:
    """Test accuracy before rewiring, in %: at an epoch, at the last one, or its mean over all."""
    accuracy = run["before"]
    if measure == AREA:
        return 100 * sum(accuracy) / len(accuracy)
    return 100 * accuracy[-1 if measure == LAST else int(measure) - 1]


def compare(study: Study, panels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every pair by every measure in every panel, with p corrected for all of them together (Holm).

    Only seeds of which both trials came to their end count.
    """
    rows: list[dict[str, Any]] = []
    for panel, measure, (one, other) in itertools.product(panels, study.measures, study.pairs):
        if isinstance(measure, int) and measure >= panel["settings"]["epochs"]:
            continue
        runs = [panel["arms"][name]["runs"] for name in (one, other)]
        both = [pair for pair in zip(*runs, strict=True) if not any("failed" in run for run in pair)]
        values = [[measured(pair[side], measure) for pair in both] for side in (0, 1)]
        told = {"panel": panel["title"], "measure": measure, "arm": one, "against": other}
        rows.append(told | asdict(paired(*values)))
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["corrected"] = corrected
    return rows
