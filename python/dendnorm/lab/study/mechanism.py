"""Steps and flips of hubs against those of poorly connected neurons, out of what ``movement`` has recorded."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["GROUPS", "QUANTITIES", "by_degree", "contrast"]

GROUPS = ("poor", "hubs")
QUANTITIES = {"step": "relative step", "flips": "share of signs that change"}
SHARE = 0.1  # of the neurons, at each end


def contrast(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Means over the tenth of the neurons with the fewest inputs and that with the most, in the first epoch recorded.

    Neurons without inputs do not count.

    Returns:
        "afferents", "step" and "flips" of each of ``GROUPS``; None where nothing was recorded.
    """
    if not run.get("moves"):
        return None
    moves = run["moves"][0]
    keys = ("afferents", *QUANTITIES)
    neurons = sorted((values for values in zip(*(moves[key] for key in keys), strict=True) if values[0] > 0),
                     key=lambda values: values[0])  # fmt: skip
    size = max(1, round(SHARE * len(neurons)))
    ends = dict(zip(GROUPS, (neurons[:size], neurons[-size:]), strict=True))
    return {
        group: {key: statistics.fmean(column) for key, column in zip(keys, zip(*some, strict=True), strict=True)}
        for group, some in ends.items()
    }


def by_degree(runs: Sequence[Mapping[str, Any]], quantity: str) -> tuple[list[float], list[float]]:
    """Numbers of inputs, and a quantity, of all neurons of all runs that have inputs."""
    points = [
        point
        for run in runs
        for moves in run.get("moves", ())[:1]
        for point in zip(moves["afferents"], moves[quantity], strict=True)
        if point[0] > 0
    ]
    return [float(count) for count, _ in points], [value for _, value in points]
