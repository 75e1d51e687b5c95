"""Builds the package with the running interpreter into a folder of its own, for PYTHONPATH: no pip, no network, and
nothing in the source tree changes.

    python tests/build_package.py FOLDER [-DNAME=VALUE ...]

FOLDER/package then holds dendnorm, and FOLDER/cmake the build, which is only brought up to date the next time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def find_tool(name: str) -> str:
    """`name` beside this interpreter, as pip installs it, or on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise SystemExit(f"build_package: needs {name}, which is neither beside {sys.executable} nor on PATH")
    return found


def build(folder: Path, options: list[str]) -> Path:
    """The folder for PYTHONPATH."""
    package = folder / "package" / "dendnorm"
    package.mkdir(parents=True, exist_ok=True)
    cmake = find_tool("cmake")
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 2))
    configure = [cmake, "-S", str(ROOT), "-B", str(folder / "cmake"), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-DDENDNORM_OUTPUT_DIR={package}", *options]
    for command in (configure, [cmake, "--build", str(folder / "cmake"), "-j", jobs]):
        if subprocess.run(command).returncode != 0:
            raise SystemExit(f"build_package: failed, for the reason printed above (command: {' '.join(command)})")
    sources = ROOT / "python" / "dendnorm"
    for source in [*sources.rglob("*.py"), sources / "py.typed"]:
        target = package / source.relative_to(sources)
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(source, target)
    for copied in package.rglob("*.py"):
        if not (sources / copied.relative_to(package)).exists():
            copied.unlink()
    return package.parent


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    print(build(Path(sys.argv[1]).resolve(), sys.argv[2:]))
