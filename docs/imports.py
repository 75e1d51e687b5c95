"""Draws docs/images/imports.svg: which module of the library imports which.

    python docs/imports.py [FILE]

A module's column is its level: one more than the highest of what it imports. Arrows would point left: they are lines,
from a module to what it imports, in the colour of its room. The lab, which may import anything, is one box. What only
others' programs import (the package itself, ``python -m dendnorm``) is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "python"))
from layout import ENTRANCES, imports, levels, modules, room  # noqa: E402

# Okabe and Ito's, which the colour-blind can tell apart.
COLOURS = {
    "ops": "#0072B2",
    "nn": "#D55E00",
    "rewiring": "#009E73",
    "models": "#CC79A7",
    "checkpoint": "#56B4E9",
    "analysis": "#E69F00",
    "integrations": "#000000",
    "lab": "#999999",
}
TOP = "#666666"
WIDTH, HEIGHT = 0.76, 0.66  # of a box, where columns and rows are 1 apart


def places(
    level: dict[str, int], below: dict[str, set[str]]
) -> dict[str, tuple[float, float]]:
    """Column and height of each module: by rooms, and near to what it imports."""
    height = {name: 0.0 for name in level}
    rooms = ["_arguments", "_extras", *COLOURS]
    for column in range(1, max(level.values()) + 1):

        def key(name: str) -> tuple[float, float, str]:
            near = sorted(height[other] for other in below[name])
            return rooms.index(room(name)), sum(near) / len(near) if near else 0.0, name

        names = sorted((name for name in level if level[name] == column), key=key)
        for index, name in enumerate(names):
            height[name] = (len(names) - 1) / 2 - index
    return {name: (level[name], height[name]) for name in level}


def draw(path: Path) -> None:
    level = levels()
    sources = modules()
    below = {name: imports(name, sources[name]) & level.keys() for name in level}
    lab = {
        other
        for name, source in sources.items()
        if room(name) == "lab"
        for other in imports(name, source)
    }
    at = places(level, below)
    outside = max(level.values()) + 1
    at["lab"], below["lab"] = (outside, 0.0), (lab & level.keys()) - ENTRANCES
    rows = max(abs(height) for _, height in at.values())
    figure, axes = plt.subplots(figsize=(2.7 * outside, 0.75 * rows + 1))
    for name, others in sorted(below.items()):
        x, y = at[name]
        for other in sorted(others):
            to, height = at[other]
            colour = COLOURS.get(room(name), TOP)
            axes.plot(
                [x - WIDTH / 2, to + WIDTH / 2],
                [y, height],
                color=colour,
                alpha=0.5,
                linewidth=0.9,
                zorder=1,
            )
    for name, (x, y) in sorted(at.items()):
        corner, colour = (x - WIDTH / 2, y - HEIGHT / 2), COLOURS.get(room(name), TOP)
        axes.add_patch(
            Rectangle(
                corner, WIDTH, HEIGHT, facecolor=colour, edgecolor="none", zorder=2
            )
        )
        axes.text(
            x, y, name, ha="center", va="center", fontsize=7.5, color="white", zorder=3
        )
    for column in range(1, outside):
        axes.text(
            column, rows + 1, f"level {column}", ha="center", va="center", fontsize=9
        )
    axes.text(outside, rows + 1, "experiments", ha="center", va="center", fontsize=9)
    axes.set_xlim(1 - WIDTH, outside + WIDTH)
    axes.set_ylim(-rows - 0.8, rows + 1.6)
    axes.axis("off")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "imports"})
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    draw(
        Path(sys.argv[1])
        if len(sys.argv) > 1
        else ROOT / "docs" / "images" / "imports.svg"
    )
