"""What commands with a catalogue share: the panels whose data are there, and whether a file answers a request."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from . import data as data_module

__all__ = ["answers", "available", "of_data"]

Panel = TypeVar("Panel")  # with "title" and "settings"


def of_data(name: str, panels: Iterable[Panel], data: Iterable[str] | None) -> list[Panel]:
    """The panels of these data sets; None: all.

    Args:
        name: what the panels are of, for the error.

    Raises:
        ValueError: there is none.
    """
    panels = list(panels)
    wanted = None if data is None else list(data)
    chosen = [panel for panel in panels if wanted is None or panel.settings.data in wanted]
    if not chosen:
        had = ", ".join(sorted({panel.settings.data for panel in panels}))
        raise ValueError(f"data must be among those of {name} ({had}), got {', '.join(wanted or ())}")
    return chosen


def available(panels: Iterable[Panel]) -> tuple[list[Panel], list[str]]:
    """The panels whose data are there, and the titles of the others.

    Raises:
        FileNotFoundError: there is none; ValueError: data that need a root have none.
    """
    present, missing = [], {}
    for panel in panels:
        try:
            data_module.locate(panel.settings.data, panel.settings.root)
            present.append(panel)
        except FileNotFoundError as error:
            missing[panel.title] = error
    if not present:
        raise next(iter(missing.values()))
    return present, list(missing)


def answers(path: Path, request: Any) -> bool:
    """Whether a file of JSON holds what a request would give again: all that the request says, and results besides."""
    try:
        return _holds(json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(request)))
    except (FileNotFoundError, ValueError):
        return False


def _holds(held: Any, asked: Any) -> bool:
    if isinstance(asked, dict):
        return isinstance(held, dict) and all(key in held and _holds(held[key], asked[key]) for key in asked)
    if isinstance(asked, list):
        return isinstance(held, list) and len(held) == len(asked) and all(map(_holds, held, asked))
    return held == asked
