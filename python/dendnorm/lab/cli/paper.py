"""``dendnorm paper``."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_names, add_output, given_names

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

    if arguments.list:
        for name, experiment in paper.EXPERIMENTS.items():
            print(f"{name:10}{experiment.title}")
        return 0
    out = arguments.out or OUT
    for name in given_names(arguments, paper.EXPERIMENTS):
        results = paper.run(
            name,
            out,
            progress=not arguments.quiet,
            **{key: getattr(arguments, key)
               for key in ("root", "data", "trials", "epochs", "quick", "workers", "overwrite")},
        )  # fmt: skip
        print(paper.table(results))
        print(f"Written to {out}: {name}.json, {name}.md and {name}.png")
    return 0
