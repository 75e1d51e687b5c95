"""``dendnorm paper``."""

from __future__ import annotations

import argparse
from typing import Any

from .options import Listed, add_output

__all__ = ["add"]

OUT = "dendnorm-paper"


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "paper",
        help="reproduce a figure or the table of the paper",
        description="Trains what a figure needs, trials side by side on all cores, and writes NAME.json, NAME.md and"
        " NAME.png. Finished trials are kept in --out and are not trained again: a run that was stopped goes on.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what --list names, by spaces or commas, or all")
    parser.add_argument("--list", action="store_true", help="name what there is")
    parser.add_argument("--root", metavar="DIR", help="folder that holds the folders of the data sets")
    parser.add_argument("--data", action=Listed, metavar="NAME", help="only the networks for these data sets")
    parser.add_argument("--trials", type=int, help="networks for each norm; left out: as the figure says")
    parser.add_argument("--epochs", type=int, help="passes over the training data; left out: as the figure says")
    parser.add_argument("--workers", type=int, help="processes; left out: one for each core")
    parser.add_argument("--quick", action="store_true", help="one trial and one or two epochs, to see that it works")
    add_output(parser, OUT, numbered=False)  # what goes on must find what it has
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    from .. import paper

    if arguments.list:
        for name, experiment in paper.EXPERIMENTS.items():
            print(f"{name:10}{experiment.title}")
        return 0
    names = [name for text in arguments.names for name in text.split(",") if name]
    if not names:
        raise ValueError("a NAME is needed, or --list")
    names = list(paper.EXPERIMENTS) if names == ["all"] else names
    out = arguments.out or OUT
    for name in names:
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
