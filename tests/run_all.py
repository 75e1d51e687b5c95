"""Every test of the project: C++ as built for use, C++ under sanitizers, Python. Ends with one line of totals.

Each part runs even where another failed; the exit status is 0 only if nothing did.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
PYTHON_ENV = {"TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor")}


def run(title: str, command: list[str], **environment: str) -> bool:
    print(f"\n=== {title}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment).returncode == 0


def ctest(title: str, build: Path) -> tuple[bool, Path]:
    report = build / "ctest.xml"
    report.unlink(missing_ok=True)
    jobs = str(os.cpu_count() or 2)
    command = ["ctest", "--test-dir", str(build), "--output-on-failure", "--no-tests=error", "-j", jobs]
    command += ["--output-junit", str(report), "--progress"]
    return run(title, command), report


def counted(report: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests of a JUnit file; a missing one counts as one failure."""
    if not report.exists():
        return 0, 1, 0
    passed = failed = skipped = 0
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            failed += 1
        elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def main() -> int:
    BUILD.mkdir(exist_ok=True)
    good, reports = [], []

    passed, report = ctest("C++", BUILD / "release")
    good.append(passed)
    reports.append(report)

    sanitized = BUILD / "sanitize"
    (sanitized / "ctest.xml").unlink(missing_ok=True)
    configure = ["cmake", "-S", str(ROOT), "-B", str(sanitized), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    configure += ["-DDENDNORM_TORCH=OFF", "-DDENDNORM_SANITIZE=ON", "-DDENDNORM_BUILD_TESTS=ON"]
    built = run("C++ for AddressSanitizer and UndefinedBehaviorSanitizer", configure)
    built = built and run("build", ["cmake", "--build", str(sanitized)])
    good.append(built)
    if built:
        passed, report = ctest("C++ under the sanitizers", sanitized)
        good.append(passed)
    reports.append(sanitized / "ctest.xml")

    for name in ("python", "gpu"):
        report = BUILD / f"pytest-{name}.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", f"tests/{name}", f"--junitxml={report}"]
        # 5: no tests in the folder.
        print(f"\n=== {name}", flush=True)
        status = subprocess.run(command, cwd=ROOT, env=os.environ | PYTHON_ENV).returncode
        good.append(status in (0, 5))
        reports.append(report)

    # The products again as an older processor would run them.
    for capability in ("avx2", "default"):
        report = BUILD / f"pytest-{capability}.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "tests/python/test_oracle.py", f"--junitxml={report}"]
        environment = PYTHON_ENV | {"DENDNORM_CPU_CAPABILITY": capability}
        good.append(run(f"the oracle with DENDNORM_CPU_CAPABILITY={capability}", command, **environment))
        reports.append(report)

    totals = [sum(column) for column in zip(*map(counted, reports), strict=True)]
    print(f"\n{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped")
    return 0 if all(good) and totals[1] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
