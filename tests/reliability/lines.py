"""The lines of the report, as data: what is counted, the target, and how much fits in `make test` and in hours."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

from .tally import Tally


@dataclass(frozen=True)
class Line:
    """A figure.

    Attributes:
        figure: what was tried, in words.
        target: what it has to be.
        result: a template over the tally's counts and largest values, `findings` among them.
        harness: the module; None where there is none yet.
        wanted: counts that must be reached, beside 0 findings.
        limits: largest values that must not be exceeded.
        units: how many units make the long form, `seconds` what they may take in all; `small` those in `make test`.
        planted: within so many units the planted fault must be found.
        isolated: runs in a process of its own, with this environment: it forks, or needs what is set before a start.
        summary: what else the whole tally says; may add findings and counts.
    """

    name: str
    figure: str
    target: str
    result: str = "not measured"
    harness: str | None = None
    wanted: dict[str, int] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    units: int = 0
    seconds: int = 0
    small: int = 1
    planted: int = 20
    isolated: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f".{self.harness}", __package__)

    def summary(self, tally: Tally) -> Tally:
        """The tally with what only all units together tell."""
        tell: Callable[[Tally], None] | None = getattr(self.module, "summary", None)
        whole = Tally()
        whole.merge(tally)
        if tell is not None:
            tell(whole)
        return whole

    def reached(self, tally: Tally) -> bool:
        enough = all(tally.counts[name] >= number for name, number in self.wanted.items())
        small = all(tally.largest.get(name, float("inf")) <= limit for name, limit in self.limits.items())
        return enough and small and not tally.counts["findings"]

    def told(self, tally: Tally) -> str:
        class Found(dict):
            def __missing__(self, key: str) -> int:
                return 0

        numbers = {name: f"{number:,}" for name, number in tally.counts.items()}
        numbers |= {name: f"{number:.3g}" for name, number in tally.largest.items()}
        return self.result.format_map(Found(numbers))


LINES = (
    Line(
        "saving",
        "`dendnorm.save` killed (`kill -9`) at random moments and before every call that touches the disk; each of"
        " these calls failing (ENOSPC, EROFS, EIO, EDQUOT, EACCES), no room for the file, two savers of one file, modes"
        " and links",
        "1,000 kills; the old or the new state loads every time; no file left over",
        "{kills} kills, {failing calls} failing calls, {loads beside two savers} loads beside two savers; old loaded"
        " {old loaded} times, new {new loaded}; {findings} wrong. A kill left its temporary file {files left by a kill}"
        " times, and the next save deleted it every time",
        harness="saving",
        wanted={"kills": 1000},
        units=450,
        seconds=900,
        small=12,
        isolated=True,
    ),
)  # fmt: skip


def line(name: str) -> Line:
    (found,) = (each for each in LINES if each.name == name)
    return found
