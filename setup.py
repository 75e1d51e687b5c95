"""Drives the CMake build, which is the only one. Everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def stop(reason: str) -> None:
    raise SystemExit(f"dendnorm: {reason}")


def find_tool(name: str) -> str:
    """`name` beside this interpreter, as pip installs it, or on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        stop(f"the build needs {name}: run `pip install {name}` and try again")
    return found


def check_torch() -> None:
    try:
        import torch
    except ImportError:
        stop(
            "the build needs the PyTorch that it will run with. Install it first (`pip install torch`), and then "
            "dendnorm without an isolated build: `pip install --no-build-isolation .`"
        )
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 11):
        stop(f"needs PyTorch 2.11 or newer, found {torch.__version__}: run `pip install -U torch`")


class CMakeBuild(build_ext):
    """The compiled libraries, and what C++ users need, as folders of the package: lib, include and share.

    DENDNORM_PREBUILT names a folder that holds these already, as `make wheel` lays them out for several PyTorches.
    """

    FOLDERS = ("lib", "include", "share")

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        target.mkdir(parents=True, exist_ok=True)
        prebuilt = os.environ.get("DENDNORM_PREBUILT")
        if not prebuilt:
            self.build_with_cmake(target)
            return
        for folder in self.FOLDERS:
            if not (Path(prebuilt) / folder).is_dir():
                stop(f"DENDNORM_PREBUILT must name a folder with {', '.join(self.FOLDERS)}; {prebuilt} has no {folder}")
            self.copy_tree(str(Path(prebuilt) / folder), str(target / folder))

    def build_with_cmake(self, target: Path) -> None:
        check_torch()
        if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
            stop("the build needs a C++20 compiler, and found none: install g++ (`apt-get install g++`) or set CXX")
        build = Path(os.environ.get("DENDNORM_BUILD_DIR", Path(self.build_temp) / "cmake")).resolve()
        # Not in `target`: pip deletes it after an editable install, and the tests go on with what was built.
        output = build / "package"
        cmake = find_tool("cmake")
        configure = [
            cmake,
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DDENDNORM_OUTPUT_DIR={output}",
            f"-DDENDNORM_CUDA={os.environ.get('DENDNORM_CUDA', 'AUTO')}",
            f"-DDENDNORM_BUILD_TESTS={os.environ.get('DENDNORM_BUILD_TESTS', 'OFF')}",
        ]
        install = [cmake, "--install", str(build), "--prefix", str(target)]
        for command in (configure, [cmake, "--build", str(build)], install, [*install, "--component", "python"]):
            if subprocess.run(command).returncode != 0:
                stop(f"the build failed; the reason is printed above (command: {' '.join(command)})")

    def copy_extensions_to_source(self) -> None:
        """An editable install has the same folders beside its sources."""
        for ext in self.extensions:
            built = (Path(self.build_lib) / self.get_ext_filename(self.get_ext_fullname(ext.name))).parent
            package = Path(self.get_finalized_command("build_py").get_package_dir("dendnorm"))
            for folder in self.FOLDERS:
                shutil.rmtree(package / folder, ignore_errors=True)
                self.copy_tree(str(built / folder), str(package / folder))


setup(ext_modules=[Extension("dendnorm._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
