"""Builds the wheel that holds a compiled library for each of several PyTorches.

    python tests/build_wheel.py FOLDER PYTHON [PYTHON ...] [-DNAME=VALUE ...]

Each PYTHON, all of one release of Python, has a PyTorch, cmake and ninja, the first also pip, setuptools and wheel. The
parts without PyTorch are compiled once, in FOLDER/core. The wheel in FOLDER/dist gets the oldest manylinux tag that its
libraries allow, by the versions of the symbols that they need from the system.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from build_package import ROOT, find_tool

# What a manylinux system may lack: https://peps.python.org/pep-0600/ asks for no newer symbols than the glibc of its
# name has; libstdc++ goes with the GCC of systems with that glibc.
SYSTEM = {"GLIBC", "GLIBCXX", "CXXABI", "GCC"}
GLIBCXX_OF = {
    "3.4.24": "2.27",
    "3.4.25": "2.28",
    "3.4.26": "2.30",
    "3.4.28": "2.31",
    "3.4.29": "2.34",
    "3.4.30": "2.35",
}
FROM_TORCH = re.compile(r"lib(torch|torch_cpu|torch_python|torch_cuda|c10|c10_cuda|gomp|gomp-[0-9a-f]+)\.so")
OF_THE_SYSTEM = re.compile(r"(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|dendnorm|cudart)|ld-linux.*)\.so")


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"build_wheel: failed, for the reason printed above (command: {' '.join(command)})")
    return done.stdout


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def needed_symbols(library: Path) -> dict[str, str]:
    """The newest version that a library needs of each kind of versioned symbol: {"GLIBC": "2.34", ...}."""
    newest: dict[str, str] = {}
    for kind, version in re.findall(r"\b([A-Z]+)_(\d+(?:\.\d+)+)\b", run(["objdump", "-T", str(library)])):
        if kind in SYSTEM and numbers(version) > numbers(newest.get(kind, "0")):
            newest[kind] = version
    return newest


def needed_libraries(library: Path) -> list[str]:
    return re.findall(r"NEEDED\s+(\S+)", run(["objdump", "-p", str(library)]))


def glibc_floor(libraries: list[Path]) -> str:
    """The glibc of the oldest systems that have all symbols."""
    floor = "2.17"
    for library in libraries:
        needed = needed_symbols(library)
        cxx = next(
            (glibc for newest, glibc in GLIBCXX_OF.items() if numbers(needed.get("GLIBCXX", "0")) <= numbers(newest)),
            None,
        )
        if cxx is None:
            raise SystemExit(f"build_wheel: {library} needs GLIBCXX {needed['GLIBCXX']}, newer than any that is known")
        floor = max(floor, needed.get("GLIBC", "0"), cxx, key=numbers)
    return floor


def check(library: Path) -> None:
    """A wheel brings no library of its own beside dendnorm's: a second OpenMP in a process has threads of its own."""
    for name in needed_libraries(library):
        if not FROM_TORCH.match(name) and not OF_THE_SYSTEM.match(name):
            raise SystemExit(f"build_wheel: {library} needs {name}, which neither PyTorch nor the system brings")
    print(f"    {library.name}: {library.stat().st_size / 1e6:.1f} MB, needs {needed_symbols(library)}")


def build(folder: Path, pythons: list[str], options: list[str]) -> Path:
    prebuilt = folder / "prebuilt"
    shutil.rmtree(prebuilt, ignore_errors=True)
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 2))
    core = folder / "core"
    common = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_BUILD_TYPE=Release"]
    run([cmake, "-S", str(ROOT), "-B", str(core), *common, "-DDENDNORM_TORCH=OFF"])
    run([cmake, "--build", str(core), "-j", jobs])
    for python in pythons:
        code = "import torch; print(torch.__version__)"
        version = run([python, "-c", code]).strip()
        print(f"=== PyTorch {version}", flush=True)
        tree = folder / f"torch{version}"
        configure = [cmake, "-S", str(ROOT), "-B", str(tree), *common, f"-DPython_EXECUTABLE={python}"]
        configure += [
            f"-DDENDNORM_CPU_LIBRARY={core / 'libdendnorm_cpu.a'}",
            f"-DDENDNORM_OUTPUT_DIR={tree / 'package'}",
        ]
        run([*configure, "-DDENDNORM_CUDA=OFF", *options])
        run([cmake, "--build", str(tree), "-j", jobs])
        install = [cmake, "--install", str(tree), "--strip", "--prefix", str(prebuilt)]
        run(install)
        run([*install, "--component", "python"])
    folders = sorted(path.name for path in (prebuilt / "lib").iterdir())
    if len(folders) != len(pythons):
        raise SystemExit(f"build_wheel: {len(pythons)} PyTorches gave {folders}: each needs a release of its own")
    libraries = sorted((prebuilt / "lib").rglob("*.so"))
    for library in libraries:
        check(library)
    dist = folder / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    # Not from the checkout, where setuptools leaves its own folders.
    pip = [pythons[0], "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(dist)]
    run([*pip, str(ROOT)], DENDNORM_PREBUILT=str(prebuilt))
    (wheel,) = dist.glob("*.whl")
    tag = f"manylinux_{glibc_floor(libraries).replace('.', '_')}_{platform.machine()}"
    run([pythons[0], "-m", "wheel", "tags", "--remove", "--platform-tag", tag, str(wheel)])
    (wheel,) = dist.glob("*.whl")
    print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB")
    return wheel


if __name__ == "__main__":
    given = sys.argv[1:]
    options = [argument for argument in given if argument.startswith("-D")]
    folder, *pythons = [argument for argument in given if not argument.startswith("-D")] or [""]
    if not folder or not pythons:
        raise SystemExit(__doc__)
    # Absolute, for CMake works elsewhere, and not resolved: an environment is known by its link.
    build(Path(folder).resolve(), [os.path.abspath(python) for python in pythons], options)
