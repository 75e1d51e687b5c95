"""What the commands that write results share: their folder, files that appear whole or not at all, Markdown tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["counted", "free_folder", "markdown_table", "open_folder", "write_text"]


def open_folder(out: str | Path, results: str, overwrite: bool) -> Path:
    """Make the folder that results go to.

    Args:
        results: the file that tells that somebody's results are there.
        overwrite: they may be replaced.

    Raises:
        FileExistsError: it holds results that may not be replaced.
        NotADirectoryError: a file lies there, or on the way.
    """
    out = Path(out).expanduser()
    if not overwrite and (out / results).exists():
        raise FileExistsError(
            f"{out} holds results already ({results}): give another folder with --out, or --overwrite to replace them"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"out must be a folder, got {str(out)!r}, where a file is in the way") from None
    return out


def free_folder(name: str, results: str) -> Path:
    """The first of NAME, NAME-2, NAME-3, ... that holds no results."""
    folder, number = Path(name), 1
    while (folder / results).exists():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder


def counted(number: int, what: str) -> str:
    """ "1 thread", "2 threads"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def write_text(path: Path, text: str) -> None:
    """Write a file under another name first, so that an interruption leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, one cell of each row under each word of the head."""
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(row) + " |" for row in rows)]
