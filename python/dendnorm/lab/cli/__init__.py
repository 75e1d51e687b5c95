"""The command ``dendnorm``: each subcommand adds its own parser and names the function that runs it."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from . import bench, demo, info, paper, study, train

__all__ = ["main"]

INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status.

    Wrong input ends in one sentence and status 2. Ctrl-C and SIGTERM keep what is done and end in 130 and 143.
    """
    from ... import __version__

    parser = argparse.ArgumentParser(prog="dendnorm", description="Sparse, dendritically normalised layers.")
    parser.add_argument("--version", action="version", version=f"dendnorm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for subcommand in (demo, train, paper, study, bench, info):
        subcommand.add(commands)
    arguments = parser.parse_args(argv)
    with _terminated_as_interrupted() as terminated:
        status = _run(arguments)
    return 128 + signal.SIGTERM if status == INTERRUPTED and terminated else status


def _run(arguments: argparse.Namespace) -> int:
    try:
        return arguments.function(arguments)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except MemoryError:
        reason = "there is not enough memory"
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        reason = _reason(error)
    print(f"dendnorm {arguments.command}: {reason}", file=sys.stderr)
    return 2


def _reason(error: Exception) -> str:
    """One sentence; the system's own errors come with a number that tells nobody anything."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[list[int]]:
    """SIGTERM does what Ctrl-C does; yields a list that then holds the signal."""
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread alone
        yield came
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)
