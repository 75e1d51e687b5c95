"""Keeps how the tests that name a feature ended, for docs/compatibility.md (see tests/compatibility.py)."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

OUTCOMES = Path(__file__).resolve().parents[1] / "build" / "compatibility.json"
PACKAGES = ("torch", "transformers", "accelerate", "lightning", "pytorch-lightning", "tensorboard", "safetensors")

_results = pytest.StashKey[dict[str, dict[str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_results] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if item.get_closest_marker("feature") is not None:
        # Setup, call and teardown each report; what went wrong, or was skipped, in any of them is the test's outcome.
        seen = item.config.stash[_results].get(item.nodeid, {"outcome": "passed", "reason": ""})
        if report.outcome != "passed" and seen["outcome"] != "failed":
            seen = {"outcome": report.outcome, "reason": _reason(report) if report.skipped else ""}
        item.config.stash[_results][item.nodeid] = seen
    return report


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ").splitlines()[0]


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """What one of several processes side by side (pytest-xdist) has found."""
    node.config.stash[_results].update(getattr(node, "workeroutput", {}).get("features", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    results = session.config.stash[_results]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["features"] = results
        return
    if not results:
        return
    tests: dict[str, dict[str, str]] = {}
    if OUTCOMES.exists():
        # A run of some tests leaves the outcomes of the others; a function that ran replaces all its cases.
        ran = {name.partition("[")[0] for name in results}
        before = json.loads(OUTCOMES.read_text(encoding="utf-8"))["tests"]
        tests = {name: case for name, case in before.items() if name.partition("[")[0] not in ran}
    OUTCOMES.parent.mkdir(exist_ok=True)
    temporary = OUTCOMES.with_suffix(f".{os.getpid()}.tmp")
    record = {"versions": _versions(), "tests": tests | results}
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.replace(temporary, OUTCOMES)
