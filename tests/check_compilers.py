"""Compiles what needs no PyTorch with every compiler that is here, warnings being errors, and runs its C++ tests.

    python tests/check_compilers.py FOLDER [COMPILER ...]

A compiler that is not here is skipped by name, and so are the tests of one for another processor where there is no
emulator (qemu-aarch64). Ends with a table of what was compiled and tested; docs/installing.md holds the last one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARM = "aarch64-linux-gnu-g++"
COMPILERS = (*(f"g++-{n}" for n in range(11, 16)), *(f"clang++-{n}" for n in range(14, 23)), ARM)
STRICT = "-Werror -pedantic-errors"


def run(command: list[str], log: Path) -> str:
    """What it printed; the log keeps that, too."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}")
    if done.returncode != 0:
        print(done.stdout[-6000:], flush=True)
        raise subprocess.CalledProcessError(done.returncode, command)
    return done.stdout


def cross() -> tuple[list[str], str | None]:
    """Options of a build for the other processor, and what runs its programs here."""
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    emulator = shutil.which("qemu-aarch64")
    if emulator:
        # gtest_discover_tests runs them while building.
        options.append(f"-DCMAKE_CROSSCOMPILING_EMULATOR={emulator};-L;/usr/aarch64-linux-gnu")
    # This system's GoogleTest is for its own processor.
    options += ["-DCMAKE_FIND_ROOT_PATH=/usr/aarch64-linux-gnu", "-DCMAKE_FIND_ROOT_PATH_MODE_PACKAGE=ONLY"]
    options += [f"-DDENDNORM_GTEST_SOURCES={folder}" for folder in ("/usr/src/googletest",) if Path(folder).exists()]
    return options, emulator


def check(compiler: str, folder: Path) -> str:
    """The compiler's line of the table."""
    path = shutil.which(compiler)
    if path is None:
        return f"| {compiler} | | skipped: not here | |"
    version = subprocess.run([path, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True).stdout.split()[
        0
    ]
    build = folder / compiler
    build.mkdir(parents=True, exist_ok=True)
    log = build / "log.txt"
    log.unlink(missing_ok=True)
    options, runs = cross() if compiler == ARM else ([], "")
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DCMAKE_CXX_COMPILER={path}", f"-DCMAKE_CXX_FLAGS={STRICT}", "-DDENDNORM_TORCH=OFF"]
    configure += [f"-DDENDNORM_BUILD_TESTS={'OFF' if runs is None else 'ON'}", *options]
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 2))
    start = time.perf_counter()
    try:
        run(configure, log)
        run(["cmake", "--build", str(build), "-j", jobs, "--target", "dendnorm_tests"], log)
        if runs is None:
            tested = "skipped: there is no qemu-aarch64"
        else:
            ctest = ["ctest", "--test-dir", str(build / "tests" / "cpp"), "--output-on-failure", "--no-tests=error"]
            done = run([*ctest, "-j", jobs], log)
            found = re.search(r"100% tests passed(?:, 0 tests failed)? out of (\d+)", done)
            tested = f"{found[1]} passed" if found else "passed"
    except subprocess.CalledProcessError:
        return f"| {compiler} | {version} | **failed**: {log} | |"
    return f"| {compiler} | {version} | {tested} | {time.perf_counter() - start:.0f} s |"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    names = sys.argv[2:] or COMPILERS
    lines = []
    for name in names:
        lines.append(check(name, Path(sys.argv[1]).resolve()))
        print(lines[-1], flush=True)
    print("\n| compiler | version | C++ tests | time |\n|---|---|---|---|", *lines, sep="\n")
    raise SystemExit(any("failed" in line for line in lines) or not any("passed" in line for line in lines))
