"""``dendnorm demo``."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_output, add_settings, add_threads, ended, given_settings, set_threads

__all__ = ["add"]

OUT = "dendnorm-demo"
OFFERED = ("data", "root", "trials", "epochs", "seed", "device")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="dense, sparse and normalised networks side by side: accuracy, connections and time",
        description="Trains networks of equal width, dense, sparse, and sparse with dendritic normalisation, each at"
        " the learning rate that is best for it on held-out training images, and writes results.json, table.md and"
        " curves.png. Ctrl-C keeps what is done.",
    )
    add_settings(parser, OFFERED)
    add_threads(parser)
    add_output(parser, OUT)
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    from .. import demo
    from ..report import free_folder

    set_threads(arguments.threads)
    sizes, grid = demo.plan(**given_settings(arguments))
    out = arguments.out or free_folder(OUT, demo.RESULTS)
    results = demo.run(sizes, grid, out, progress=not arguments.quiet, overwrite=arguments.overwrite)
    print(demo.table(results))
    drawn = any(size["summary"] for size in results["sizes"])
    print(f"Written to {out}: results.json, table.md" + (" and curves.png" if drawn else " (no epoch was finished)"))
    return ended(results["interrupted"], (record for size in results["sizes"] for record in size["runs"]))
