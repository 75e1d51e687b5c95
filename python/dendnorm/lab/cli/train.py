"""``dendnorm train``."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_output, add_settings, add_threads, ended, given_settings, set_threads

__all__ = ["add"]

OUT = "dendnorm-results"


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train the same sparse network with several norms, side by side",
        description="Trains the same sparse network with several norms over several trials, with rewiring after every"
        " epoch, and writes results.json, table.md and curves.png. Ctrl-C keeps what is done. Lists are set apart by"
        " spaces or commas.",
    )
    add_settings(parser)
    add_threads(parser)
    add_output(parser, OUT)
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    from .. import comparison, results
    from ..report import free_folder
    from ..settings import Settings

    set_threads(arguments.threads)
    settings = Settings(**given_settings(arguments))
    out = arguments.out or free_folder(OUT, comparison.RESULTS)
    reached = comparison.run(settings, out, progress=not arguments.quiet, overwrite=arguments.overwrite)
    summary = results.summarise(reached)
    print(results.table(reached, summary))
    files = "results.json, table.md and curves.png" if summary else "results.json and table.md (no epoch was finished)"
    print(f"Written to {out}: {files}")
    return ended(reached["interrupted"], reached["runs"])
