"""``dendnorm paper``."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_names, add_output, run_names

__all__ = ["add"]

OUT = "dendnorm-paper"


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "paper",
        help="reproduce a figure or the table of the paper",
        description="Trains what a figure needs, trials side by side on all cores, and writes NAME.json, NAME.md and"
        " NAME.png. Finished trials are kept in --out and are not trained again: a run that was stopped goes on.",
    )
    add_names(parser, "figure")
    parser.add_argument("--quick", action="store_true", help="one trial and one or two epochs, to see that it works")
    add_output(parser, OUT, numbered=False)  # what goes on must find what it has
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    from .. import paper

    files = "{name}.json, {name}.md and {name}.png"
    return run_names(arguments, paper.EXPERIMENTS, paper.run, paper.table, OUT, files)
