"""Options of the command line: those that the fields of ``Settings`` describe, and those that commands share."""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any

from ..settings import Option, Settings, option_of

__all__ = ["Listed", "add_names", "add_output", "add_settings", "add_threads", "ended", "given_settings",
           "run_names", "set_threads"]  # fmt: skip


class Listed(argparse.Action):
    """Values set apart by spaces or commas; the option may be repeated for more."""

    def __init__(self, *arguments: Any, kind: Callable[[str], Any] = str, **options: Any) -> None:
        super().__init__(*arguments, nargs="+", **options)
        self.kind = kind

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:  # fmt: skip
        held = list(getattr(namespace, self.dest, None) or ())
        for text in ",".join(values).split(","):
            if text:
                try:
                    held.append(self.kind(text))
                except ValueError:
                    raise argparse.ArgumentError(self, f"invalid {self.kind.__name__} value: {text!r}") from None
        setattr(namespace, self.dest, held)


def add_settings(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """An option for every field of ``Settings``; what is not given is not in the namespace.

    Args:
        only: the fields that have one.
    """
    types = typing.get_type_hints(Settings)
    for described in fields(Settings):
        if only is not None and described.name not in only:
            continue
        option = option_of(described)
        flags = option.flags or ("--" + described.name.replace("_", "-"),)
        parser.add_argument(
            *flags,
            dest=described.name,
            default=argparse.SUPPRESS,
            help=_help(described.name, option, described.default),
            **_reading(types[described.name], option),
        )


def _help(name: str, option: Option, default: Any) -> str:
    if name == "data" or default is None or default == () or default is False:
        return option.help
    shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{option.help} (default: {shown})"


def _reading(kind: Any, option: Option) -> dict[str, Any]:
    """What argparse is told of a field's type."""
    if kind is bool:
        return {"action": "store_true"}
    if typing.get_origin(kind) is tuple:
        return {"action": Listed, "kind": typing.get_args(kind)[0], "metavar": option.metavar}
    number = kind if kind in (int, float) else str
    return {"type": number, "choices": option.choices and tuple(option.choices), "metavar": option.metavar}


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that a command line names, for ``Settings``; where it names a folder alone, the data in it."""
    from .. import data

    given = {described.name: getattr(arguments, described.name) for described in fields(Settings)
             if hasattr(arguments, described.name)}  # fmt: skip
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if "data" not in given and "root" in given:
        given["data"] = data.guess(given["root"])
    return given


def ended(interrupted: bool, records: Iterable[Mapping[str, Any]]) -> int:
    """How a command that trained ends: 130 where it was interrupted, which it says, 1 where a run failed, or 0."""
    if interrupted:
        print("Interrupted: the finished epochs were kept.", file=sys.stderr)
        return 130
    return 1 if any("failed" in record for record in records) else 0


def add_output(
    parser: argparse.ArgumentParser, out: str, quiet: str = "no progress bar", numbered: bool = True
) -> None:
    """--out, --overwrite and --quiet.

    Args:
        out: the folder where none is given.
        numbered: a folder that holds results is passed over then.
    """
    where = f"default: {out}, or {out}-2, ... where that holds results" if numbered else f"default: {out}"
    parser.add_argument("--out", metavar="DIR", help=f"folder where the results go ({where})")
    parser.add_argument("--overwrite", action="store_true", help="results that the folder holds may be replaced")
    parser.add_argument("--quiet", action="store_true", help=quiet)


def add_names(parser: argparse.ArgumentParser, what: str) -> None:
    """The names of a catalogue's entries, --list, and how many processes train them.

    Args:
        what: an entry is called.
    """
    parser.add_argument("names", nargs="*", metavar="NAME", help="what --list names, by spaces or commas, or all")
    parser.add_argument("--list", action="store_true", help="name what there is")
    parser.add_argument("--root", metavar="DIR", help="folder that holds the folders of the data sets")
    parser.add_argument("--data", action=Listed, metavar="NAME", help="only the networks for these data sets")
    parser.add_argument("--trials", type=int, help=f"networks of each kind; left out: as the {what} says")
    parser.add_argument("--epochs", type=int, help=f"passes over the training data; left out: as the {what} says")
    parser.add_argument("--workers", type=int, help="processes; left out: one for each core")


def run_names(
    arguments: argparse.Namespace,
    catalogue: Mapping[str, Any],
    run: Callable[..., dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    out: str,
    files: str,
    **options: Any,
) -> int:
    """Make the entries of a catalogue that a command line names, one by one, or list them.

    Args:
        catalogue: the entries, each with a title, by name.
        run: makes one of them, from its name, the folder, `options` and what ``add_names``, ``add_output`` and
            --quick read.
        table: of what `run` gives, to be printed.
        out: the folder where none is given.
        files: what one entry leaves there, of its "{name}".

    Raises:
        ValueError: there is no name.
    """
    if arguments.list:
        for name, entry in catalogue.items():
            print(f"{name:10}{entry.title}")
        return 0
    names = [name for text in arguments.names for name in text.split(",") if name]
    if not names:
        raise ValueError("a NAME is needed, or --list")
    out = arguments.out or out
    options |= {key: getattr(arguments, key)
                for key in ("root", "data", "trials", "epochs", "quick", "workers", "overwrite")}  # fmt: skip
    for name in catalogue if names == ["all"] else names:
        print(table(run(name, out, progress=not arguments.quiet, **options)))
        print(f"Written to {out}: {files.format(name=name)}")
    return 0


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="CPU threads; left out: PyTorch's own choice")


def set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
