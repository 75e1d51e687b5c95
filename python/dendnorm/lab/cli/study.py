"""``dendnorm study``."""

from __future__ import annotations

import argparse
from typing import Any

from .options import Listed, add_names, add_output, run_names

__all__ = ["add"]

OUT = "dendnorm-study"


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "study",
        help="what sparsity and normalisation are worth, on equal terms",
        description="Gives every kind of network the same search on held-out training images, trains what was chosen"
        " with paired seeds, side by side on all cores, and writes NAME.json, NAME.md, NAME.csv and NAME.png."
        " Finished trials are kept in --out and are not trained again: a run that was stopped goes on.",
    )
    add_names(parser, "study")
    parser.add_argument(
        "--density", action=Listed, kind=float, metavar="SHARE", help="only networks of these densities"
    )
    parser.add_argument("--quick", action="store_true",
                        help="three trials, two epochs, no search; without --root on digits")  # fmt: skip
    parser.add_argument("--same", action="store_true",
                        help="one point of the grid for all, the best for their mean")  # fmt: skip
    add_output(parser, OUT, numbered=False)  # what goes on must find what it has
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    from .. import study

    files = "{name}.json, {name}.md, {name}.csv and {name}.png"
    return run_names(
        arguments,
        study.STUDIES,
        study.run,
        study.table,
        OUT,
        files,
        densities=arguments.density,
        same=arguments.same,
    )
