"""``dendnorm info``."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    parser = commands.add_parser("info", help="versions, how it was built, instruction sets, devices")
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    from ... import info

    print(info.report())
    return 0
