"""Seconds of a training step of every arm, taking turns in one process of one thread; no part of what is repeatable."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...info import processor
from ..networks import build_network
from ..report import write_text
from ..settings import Settings
from ..train import Descent, load_data
from .catalogue import Panel, Study

__all__ = ["Times", "measure"]

STEPS, TURNS = 50, 9
Times = dict[str, dict[str, dict[str, float]]]  # panel, arm: "median", "low" and "high", of turns


def measure(study: Study, panels: Sequence[Panel], chosen: Sequence[Mapping[str, Any]], path: Path,
            steps: int = STEPS, turns: int = TURNS) -> dict[str, Any]:  # fmt: skip
    """Seconds of a step, forward, backward and descent, without rewiring; kept in `path`, which is read if it is there.

    Args:
        chosen: of each panel, what ``collect`` gave.

    Returns:
        "machine", "steps", "turns", and "seconds" by panel and arm.
    """
    wanted = {panel.title for panel in panels}
    with contextlib.suppress(FileNotFoundError, ValueError):
        held = json.loads(path.read_text(encoding="utf-8"))
        if wanted <= held["seconds"].keys() and held["steps"] == steps:
            return held
    with _one_thread():
        seconds = {
            panel.title: _of_panel(study, panel, result, steps, turns)
            for panel, result in zip(panels, chosen, strict=True)
        }
    times = {"machine": processor(), "torch": torch.__version__, "steps": steps, "turns": turns, "seconds": seconds}
    write_text(path, json.dumps(times, indent=1))
    return times


def _of_panel(study: Study, panel: Panel, result: Mapping[str, Any], steps: int, turns: int) -> dict[str, Any]:
    data = load_data(panel.settings, torch.device("cpu"))
    taken: dict[str, list[float]] = {}
    runners = {}
    for arm in study.arms:
        settings = replace(panel.settings, **arm.changes, **result["arms"][arm.name]["chosen"])
        model = build_network(data.image_shape, len(data.classes), settings, arm.kind, 0)
        rows = data.train_inputs[: settings.batch].float().mul_(data.scale)
        runners[arm.name] = _steps(model, settings, rows, data.train_targets[: settings.batch])
        runners[arm.name](3)
    for _ in range(turns):
        for name, run in runners.items():
            began = time.perf_counter()
            run(steps)
            taken.setdefault(name, []).append((time.perf_counter() - began) / steps)
    return {
        name: {"median": statistics.median(times), "low": min(times), "high": max(times)}
        for name, times in taken.items()
    }


def _steps(model: nn.Module, settings: Settings, inputs: torch.Tensor, targets: torch.Tensor) -> Callable[[int], None]:
    descent = Descent(model, settings)

    def run(count: int) -> None:
        for _ in range(count):
            descent.step(nn.functional.cross_entropy(model(inputs), targets), 1e-6)

    return run


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
