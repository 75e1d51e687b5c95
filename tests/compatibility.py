"""docs/compatibility.md from the tests: which of them holds which feature, and how it ended.

A test says what it proves with ``@pytest.mark.feature("torch.export with a dynamic batch")``, the text as a literal.
The plugin in tests/conftest.py writes the outcomes into build/compatibility.json, and

    python tests/compatibility.py

writes the page. A test without an outcome there keeps the one that the page had.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tests/python", "tests/gpu")
OUTCOMES = ROOT / "build" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"
UNKNOWN = "not run yet"
# Its cases are a table of their own: models by what is done with them.
MODELS = "tests/python/test_journeys.py::test_whole_models"
YES = """\
Yes: the test passes. Under a trainer's name a model is trained, saved and resumed there, and ends with the bits of an
undisturbed run; exported means by `torch.export`, to run where dendnorm is not installed."""
TITLE, LIST = "## Whole models", "## Every feature"
HEAD = """\
# What works with what

Written by `python tests/compatibility.py` from the tests that name a feature, with the outcome of the latest run of
each. What a test needs and the machine lacks is given as the reason.
"""


@dataclass(frozen=True)
class Row:
    """A feature, and the test function that proves it: ``tests/python/test_x.py::test_y``."""

    feature: str
    test: str


def _is_feature(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.feature"


def features_in(path: Path) -> list[Row]:
    """The features that a file of tests names, in its order.

    Raises:
        ValueError: a feature that is not one string literal, or a mark on something else than a function.
    """
    rows = []
    where = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    marks = sum(_is_feature(node) for node in ast.walk(tree))
    for node in tree.body:
        for decorator in getattr(node, "decorator_list", []):
            if not _is_feature(decorator):
                continue
            text = decorator.args[0] if len(decorator.args) == 1 and not decorator.keywords else None
            if not (isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value.strip()):
                raise ValueError(f"{where}: feature must be one string literal, got {ast.unparse(decorator)}")
            rows.append(Row(text.value, f"{where}::{node.name}"))
    if marks != len(rows):
        raise ValueError(f"{where}: pytest.mark.feature must decorate functions of the module itself")
    return rows


def features() -> list[Row]:
    """Every feature that a test names, by file and place in it."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("test_*.py"))]
    return [row for path in files for row in features_in(path)]


def outcome(cases: Iterable[dict[str, str]]) -> str:
    """How the cases of a test ended, in words: each has "outcome" (passed, failed, skipped) and "reason"."""
    cases = list(cases)
    counts = Counter(case["outcome"] for case in cases)
    reasons = sorted({case["reason"] for case in cases if case["outcome"] == "skipped"})
    if counts["failed"]:
        return f"fails ({counts['failed']} of {len(cases)} cases)" if len(cases) > 1 else "fails"
    if not counts["passed"]:
        return f"not run here: {'; '.join(reasons)}" if reasons else UNKNOWN
    passes = f"passes ({counts['passed']} cases)" if counts["passed"] > 1 else "passes"
    return f"{passes}; {counts['skipped']} not run here: {'; '.join(reasons)}" if reasons else passes


def rows_of(page: str) -> dict[Row, str]:
    """The table of a page: the outcome of each row, in the page's order."""
    page = page.partition(f"\n{LIST}\n")[2] or page
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    return {Row(row[0], row[1].strip("`")): row[2].replace("\\|", "|") for row in cells[2:]}


def models(tests: dict[str, dict[str, str]], before: str = "") -> list[str]:
    """The table of models, from the cases of their test, ``[ViT-exported]``; where none ran, that of the page before.

    "yes" passed, "no" failed; what did not run here says why.
    """
    cases = {name.partition("[")[2][:-1]: case for name, case in tests.items() if name.partition("[")[0] == MODELS}
    if not cases:
        held = before.partition(f"\n{TITLE}\n")[2].partition(f"\n{LIST}\n")[0]
        return [line for line in held.splitlines() if line.startswith("|")]
    names = list(dict.fromkeys(case.partition("-")[0] for case in cases))
    stages = list(dict.fromkeys(case.partition("-")[2] for case in cases))

    def cell(name: str, stage: str) -> str:
        case = cases.get(f"{name}-{stage}", {"outcome": "missing"})
        words = {"passed": "yes", "failed": "no", "missing": UNKNOWN}
        return words.get(case["outcome"]) or f"not run here: {case['reason']}"

    lines = ["| model, made sparse | " + " | ".join(stages) + " |", "|---" * (len(stages) + 1) + "|"]
    return lines + [f"| {name} | " + " | ".join(cell(name, stage) for stage in stages) + " |" for name in names]


def page(rows: list[Row], record: dict[str, Any], before: str = "") -> str:
    """The page for these features, from what the plugin recorded and, where it recorded nothing, the page before."""
    known = rows_of(before)
    lines = [HEAD]
    if record.get("versions"):
        lines.append("Latest run: " + ", ".join(f"{name} {at}" for name, at in record["versions"].items()) + ".\n")
    table = models(record.get("tests", {}), before)
    if table:
        lines += [TITLE, "", f"By `{MODELS}`. {YES}", "", *table, ""]
    lines += [LIST, "", "| feature | test | outcome |", "|---|---|---|"]
    for row in rows:
        cases = [case for name, case in record.get("tests", {}).items() if name.partition("[")[0] == row.test]
        text = outcome(cases) if cases else known.get(row, UNKNOWN)
        lines.append(f"| {row.feature} | `{row.test}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    if not OUTCOMES.exists():
        print(f"{OUTCOMES.relative_to(ROOT)} does not exist: run the tests first", file=sys.stderr)
        return 1
    record = json.loads(OUTCOMES.read_text(encoding="utf-8"))
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    PAGE.write_text(page(features(), record, before), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
