"""docs/reliability.md from the lines and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import ROOT
from .lines import Line

PAGE = ROOT / "docs" / "reliability.md"
HEAD = """\
# Reliability

Written by `make reliability` (`tests/reliability/`), which goes on where it was stopped. Each line says what was tried,
how often, and what came of it; what was not reached, or not measured, is said to be so. Every harness was also run on
a fault that was planted in the library, which it must find. A small form of each runs in `make test`.

`make reliability ARGS=NAME` measures one line.
"""


def entry(one: Line, found: dict[str, Any] | None) -> str:
    lines = [f"## {one.name}", "", f"- **Tried**: {one.figure}.", f"- **Target**: {one.target}."]
    if found is None:
        return "\n".join([*lines, "- **Result**: not measured.", ""])
    verdict = "reached" if found["reached"] else "**not reached**"
    lines.append(f"- **Result**: {found['result']} ({verdict}).")
    if found.get("planted") is not None:
        units = found["planted"]
        lines.append(f"- **Planted fault**: found in unit {units}." if units else "- **Planted fault**: **not found**.")
    for text in found["findings"][:5]:
        lines.append(f"- **Open**: {' '.join(text.split())[:300]}")
    lines.append(
        f"- `make reliability ARGS={one.name}`, {found['units']:,} units in {found['seconds']:,} s; {found['date']},"
        f" {found['machine']}, commit {found['commit']}."
    )
    return "\n".join([*lines, ""])


def overview(lines: Sequence[Line], found: dict[str, Any]) -> str:
    rows = ["| line | target | |", "|---|---|---|"]
    for one in lines:
        known = found.get(one.name)
        verdict = "not measured" if known is None else "reached" if known["reached"] else "**not reached**"
        rows.append(
            f"| [{one.name}](#{one.name.replace(' ', '-')}) | {one.target.replace('|', chr(92) + '|')} | {verdict} |"
        )
    return "\n".join([*rows, ""])


def write(lines: Sequence[Line], found: dict[str, Any]) -> None:
    parts = [HEAD, overview(lines, found), *(entry(one, found.get(one.name)) for one in lines)]
    PAGE.write_text("\n".join(parts), "utf-8")
