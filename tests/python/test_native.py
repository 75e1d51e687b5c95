"""Which compiled library is loaded, and what is said where none is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dendnorm
from dendnorm import _native, info

PACKAGE = Path(dendnorm.__file__).parent


def folders(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("version", "cuda", "expected"),
    [
        ("2.11.0", None, "torch2.11"),
        ("2.13.1+cpu", None, "torch2.13"),
        ("2.13.0+cu130", "13.0", "torch2.13-cuda13"),
        ("2.13.0+cu126", "12.6", "torch2.13"),
        ("2.11.0+cu130", "13.0", "torch2.11"),
        ("2.13.0a0+git1234", None, "torch2.13"),
    ],
)
def test_the_library_of_this_release_and_this_cuda_is_taken(version, cuda, expected, tmp_path):
    folder = folders(tmp_path, "torch2.11", "torch2.13", "torch2.13-cuda13", "torch2.1")
    chosen = _native.choose(folder, version, cuda)
    assert chosen.folder.name == expected
    release = ".".join(version.split(".")[:2])
    assert chosen.reason.startswith(f"for PyTorch {release}")
    assert ("without kernels for GPUs" in chosen.reason) == (cuda is not None and "cuda" not in expected)


def test_a_release_without_a_library_is_refused_with_what_to_do(tmp_path):
    folder = folders(tmp_path, "torch2.9", "torch2.11", "torch2.13-cuda13", "other")
    with pytest.raises(ImportError) as caught:
        _native.choose(folder, "2.15.0", None)
    message = str(caught.value)
    assert "for PyTorch 2.9, 2.11 and 2.13, and the installed one is 2.15.0" in message
    assert "pip install 'torch==2.13.*'" in message and "--no-build-isolation" in message
    assert "\n" not in message


def test_only_kernels_for_another_cuda_are_refused(tmp_path):
    with pytest.raises(
        ImportError, match=r"PyTorch 2.13 with another CUDA than none, which the installed one \(2.13.0"
    ):
        _native.choose(folders(tmp_path, "torch2.13-cuda13"), "2.13.0+cpu", None)


def test_no_library_at_all_is_said(tmp_path):
    with pytest.raises(ImportError, match=r"no compiled library is in .*missing; build it"):
        _native.choose(tmp_path / "missing", "2.13.0", None)


def import_elsewhere(tmp_path: Path, prepare: str) -> str:
    """The last line of stderr of a process that imports a copy of the package, after ``prepare`` changed its lib/."""
    program = f"""
import shutil, pathlib
package = pathlib.Path({str(tmp_path)!r}) / "dendnorm"
shutil.copytree({str(PACKAGE)!r}, package, ignore=shutil.ignore_patterns("__pycache__", "include", "share"))
(folder,) = (path for path in (package / "lib").glob("torch*") if path.name == {_native.library().folder.name!r})
(module,) = folder.glob("_C*")
{prepare}
import sys
sys.path.insert(0, {str(tmp_path)!r})
import dendnorm
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_missing_library_is_said_in_one_line(tmp_path):
    said = import_elsewhere(tmp_path, "shutil.rmtree(package / 'lib')")
    assert said.startswith("ImportError: dendnorm: no compiled library is in ") and "build it" in said


def test_a_module_of_another_python_is_said(tmp_path):
    said = import_elsewhere(tmp_path, "module.rename(folder / '_C.cpython-399-x86_64-linux-gnu.so')")
    assert f"has no module for {sys.implementation.cache_tag} (it has _C.cpython-399-x86_64-linux-gnu.so)" in said


def test_a_broken_library_is_said(tmp_path):
    said = import_elsewhere(tmp_path, "module.write_bytes(b'no library')")
    assert "could not be loaded with PyTorch" in said and "build it anew" in said


def test_the_library_is_told(monkeypatch):
    facts = info.collect()
    assert Path(facts["library"]["folder"]).is_dir()
    release = ".".join(torch.__version__.split(".")[:2])
    assert facts["library"]["chosen"].startswith(f"for PyTorch {release}")
    assert facts["library"]["folder"] in info.report()
    assert facts["build"]["torch"].startswith(release + ".")


def test_the_module_is_loaded_once():
    assert _native.load() is _native.load() is dendnorm._C


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_is_in_the_process():
    """PyTorch's: a second runtime would have threads of its own, which wait while the others compute."""
    program = """
import re, sys, torch
def runtimes():
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return {line.split()[-1] for line in maps if re.search(r"/lib[gi]?omp[^/]*\\.so", line)}
before = runtimes()
import dendnorm
torch.set_num_threads(2)
dendnorm.SparseLinear(512, 512, density=0.5)(torch.randn(256, 512)).sum().backward()
assert before == runtimes(), (before, runtimes())
print(len(before), torch.__config__.parallel_info().count("OpenMP"))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    runtimes, named = map(int, done.stdout.split())
    assert runtimes == (1 if named else 0)
    if shutil.which("readelf") is None:
        return
    needed = subprocess.run(
        ["readelf", "-d", *map(str, _native.library().folder.glob("*.so"))], capture_output=True, text=True, check=True
    ).stdout
    assert "libdendnorm.so" in needed and "libtorch" in needed
    assert not [line for line in needed.splitlines() if "NEEDED" in line and "omp" in line]


def modules_after(*lines: str) -> set[str]:
    """What a fresh process has loaded after these lines that it had not after ``import torch``."""
    program = ["import sys, torch", "before = set(sys.modules)", *lines, "print(*set(sys.modules) - before)"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, check=True, env=environment
    )
    return set(done.stdout.split())


def test_importing_dendnorm_imports_little_else():
    """No package beside PyTorch and NumPy, no part of PyTorch that itself did not need, no experiments, no trainers."""
    added = modules_after("import dendnorm")
    own = {name for name in added if name.partition(".")[0] == "dendnorm"}
    others = {name for name in added - own if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name for name in others if name.partition(".")[0] != "numpy"} == set()
    assert {name for name in own if name.split(".")[1:2] in (["lab"], ["integrations"])} == set()
    assert "dendnorm.analysis.pictures" not in own
    assert "dendnorm.nn.linear" in own and len(own) < 90


@pytest.mark.parametrize("first", ["dendnorm", "torch.utils.flop_counter"])
def test_the_flop_counter_is_taught_whoever_is_imported_first(first):
    second = {"dendnorm": "torch.utils.flop_counter", "torch.utils.flop_counter": "dendnorm"}[first]
    teach = f"""import {first}, importlib.util
found = importlib.util.find_spec("torch.utils.flop_counter")  # asking does not import it
import {second}
counter = sys.modules["torch.utils.flop_counter"]
assert type(counter.__loader__).__name__ == type(counter.__spec__.loader).__name__ == "SourceFileLoader"
layer = dendnorm.SparseLinear(12, 9, nnz=40)
with counter.FlopCounterMode(display=False) as counted:
    layer(torch.randn(5, 12))
assert counted.get_total_flops() == 2 * 5 * 40, counted.get_total_flops()"""
    assert "torch.utils.flop_counter" in modules_after(teach)
