"""Runs the long forms and writes the page; goes on where an earlier run of the same commit was stopped.

Each harness runs in a process of its own, two side by side. Every few seconds its tally is kept in build/reliability/,
and no more than those are lost when it is stopped. ``build/reliability.json`` has what came of all.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import ROOT, page
from .lines import LINES, Line, line
from .tally import Tally

KEPT = ROOT / "build" / "reliability"
RECORD = ROOT / "build" / "reliability.json"
KEEP_EVERY = 10.0  # seconds


def processor() -> str:
    for text in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit; with a + where the library or the harness has changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "python", "csrc"], capture_output=True, text=True)
        return head.stdout.strip() + "+" * bool(dirty.stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def sources(one: Line) -> str:
    """Changes where the library or the harness does: what was counted before then no longer stands."""
    digest = hashlib.sha256()
    compiled = sorted((ROOT / "python" / "dendnorm" / "lib").rglob("*.so*"))
    for path in [*sorted((ROOT / "python").rglob("*.py")), *compiled, Path(str(one.module.__file__))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def work(one: Line, seconds: float) -> None:
    """Go on with a line's long form for so long, or until it is through."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{one.name}.json"
    state: dict[str, Any] = {"sources": sources(one), "next": 0, "seconds": 0.0, "tally": Tally().as_json()}
    if path.exists() and (before := json.loads(path.read_text("utf-8")))["sources"] == state["sources"]:
        state = before
    tally, number, spent = Tally.of_json(state["tally"]), state["next"], state["seconds"]
    started, latest = time.monotonic(), time.monotonic()

    def keep() -> None:
        now = {"sources": state["sources"], "next": number, "seconds": spent + time.monotonic() - started,
               "tally": tally.as_json(), "commit": commit(), "date": f"{datetime.now(UTC):%Y-%m-%d}",
               "machine": processor()}  # fmt: skip
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(now), "utf-8")
        os.replace(temporary, path)

    while number < one.units and time.monotonic() - started < seconds:
        one.module.unit(number, tally)
        number += 1
        if time.monotonic() - latest > KEEP_EVERY:
            keep()
            latest = time.monotonic()
    keep()


def isolated(one: Line, *arguments: str) -> subprocess.CompletedProcess:
    """This module in a process of the line's own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | one.environment | getattr(one.module, "environment", dict)()
    paths = [str(ROOT / "tests"), str(ROOT / "python"), str(ROOT / "tests" / "python")]
    environment["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", __package__, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def tried(one: Line, units: int) -> Tally:
    """Units of a line here, from the first."""
    tally = Tally()
    for number in range(units):
        one.module.unit(number, tally)
    return tally


def caught(one: Line) -> int:
    """After how many units the planted fault was found; 0 if it was not."""
    with one.module.planted():
        tally = Tally()
        for number in range(one.planted):
            one.module.unit(number, tally)
            if tally.counts["findings"]:
                return number + 1
    return 0


def records() -> Iterator[tuple[Line, dict[str, Any]]]:
    for one in LINES:
        path = KEPT / f"{one.name}.json"
        if one.harness is not None and path.exists():
            yield one, json.loads(path.read_text("utf-8"))


def gather() -> None:
    """build/reliability.json from what the lines have kept, and the page from it."""
    found = {}
    for one, kept in records():
        tally = one.summary(Tally.of_json(kept["tally"]))
        found[one.name] = {
            "result": one.told(tally), "reached": one.reached(tally, kept["seconds"]), "findings": tally.findings,
            "counts": dict(tally.counts), "largest": tally.largest, "units": kept["next"],
            "seconds": round(kept["seconds"]),
            "planted": kept.get("planted"), "commit": kept["commit"], "date": kept["date"], "machine": kept["machine"],
        }  # fmt: skip
    if RECORD.exists():
        found = json.loads(RECORD.read_text("utf-8")) | found
    RECORD.write_text(json.dumps(found, indent=1), "utf-8")
    page.write(LINES, found)


def run(names: list[str], seconds: float) -> int:
    chosen = [one for one in LINES if one.harness is not None and (not names or one.name in names)]

    def long_form(one: Line) -> None:
        done = isolated(one, "work", one.name, "--seconds", str(min(seconds, one.seconds)))
        plant = isolated(one, "planted", one.name)
        path = KEPT / f"{one.name}.json"
        if done.returncode == 0 and path.exists():
            kept = json.loads(path.read_text("utf-8"))
            kept["planted"] = int(plant.stdout.split()[-1]) if plant.returncode == 0 else 0
            path.write_text(json.dumps(kept), "utf-8")
        print(f"{one.name}: {'done' if done.returncode == 0 else 'FAILED: ' + done.stderr[-2000:]}", flush=True)

    jobs = int(os.environ.get("RELIABILITY_JOBS", min(2, os.cpu_count() or 1)))
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(long_form, chosen))
    gather()
    found = json.loads(RECORD.read_text("utf-8"))
    return 0 if all(found.get(one.name, {}).get("reached") for one in chosen) else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    parser.add_argument("what", choices=["run", "page", "work", "small", "planted"])
    parser.add_argument("names", nargs="*", help="of lines; all, if none is given")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each line, at most")
    given = parser.parse_args()
    if given.what == "run":
        return run(given.names, given.seconds)
    if given.what == "page":
        gather()
        return 0
    one = line(given.names[0])
    if given.what == "work":
        work(one, min(given.seconds, one.seconds))
    elif given.what == "small":
        tally = one.summary(tried(one, one.small))
        print(json.dumps({"tally": tally.as_json(), "caught": caught(one)}))
    else:
        print(caught(one))
    return 0


if __name__ == "__main__":
    sys.exit(main())
