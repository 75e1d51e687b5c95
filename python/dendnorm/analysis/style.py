"""How every picture of the project looks: one colour for each norm, one line style for each phase, nothing cut off."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "NORM_COLOURS",
    "PALETTE",
    "STYLES",
    "colours",
    "heading",
    "legend_below",
    "new_figure",
    "open_frames",
    "save",
]

# Distinct for colour-blind readers too: M. Okabe and K. Ito, "Color universal design", 2008. Yellow, too pale for
# lines, has given its place to grey.
PALETTE = {
    "black": "#000000",
    "orange": "#e69f00",
    "sky blue": "#56b4e9",
    "bluish green": "#009e73",
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "reddish purple": "#cc79a7",
    "grey": "#999999",
}
NORM_COLOURS = {
    "none": PALETTE["black"],
    "l0": PALETTE["blue"],
    "l0-variable": PALETTE["orange"],
    "weight_norm": PALETTE["bluish green"],
    "joint": PALETTE["vermillion"],
}
SPARE = (PALETTE["reddish purple"], PALETTE["sky blue"], PALETTE["grey"])  # for other norms, and names that are none
STYLES = {"before": "-", "after": "--"}  # rewiring
HEADING = 11  # points


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: a norm's own, and for the others the spare ones in turn, then whatever is not taken."""
    names = list(names)
    own = {name: NORM_COLOURS[name] for name in names if name in NORM_COLOURS}
    free = [colour for colour in (*SPARE, *NORM_COLOURS.values()) if colour not in own.values()]
    others = [name for name in names if name not in own]
    return own | {name: free[index % len(free)] for index, name in enumerate(others)}


def new_figure(width: float, height: float) -> Figure:
    """Of so many inches. Drawn without a display, so that it works on a server."""
    return require("matplotlib.figure", "train").Figure(figsize=(width, height), layout="constrained")


def open_frames(panels: Any) -> None:
    """Leave the lines above and at the right of each panel out."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)


def heading(figure: Figure, text: str, left: bool = False) -> None:
    """A title over all panels, in as many lines as keep it within the figure; sentences are read from the left."""
    title = figure.suptitle(text, fontsize=HEADING, **({"x": 0.01, "ha": "left"} if left else {}))
    room = 0.96 * figure.bbox.width
    longest = max(map(len, text.splitlines()), default=0)
    while longest > 10 and title.get_window_extent().width > room:
        longest -= 2
        title.set_text("\n".join("\n".join(textwrap.wrap(line, longest)) for line in text.splitlines()))


def legend_below(figure: Figure, handles: Mapping[str, Any] | Sequence[Any], columns: int = 6) -> None:
    """A legend under all panels, in as many columns as keep it within the figure.

    Args:
        handles: artists by label, or artists that have their labels.
        columns: at most.
    """
    artists = list(handles.values()) if isinstance(handles, Mapping) else list(handles)
    labels = list(handles) if isinstance(handles, Mapping) else [artist.get_label() for artist in artists]
    for count in range(max(1, min(columns, len(artists))), 0, -1):
        legend = figure.legend(artists, labels, loc="outside lower center", ncols=count, frameon=False, fontsize=9)
        if count == 1 or legend.get_window_extent().width <= 0.98 * figure.bbox.width:
            return
        legend.remove()


def save(figure: Figure, path: str | Path, dpi: int = 120) -> None:
    """Write a figure in the format that its suffix names; the file appears whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        figure.savefig(temporary, dpi=dpi)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
