"""Which way the pieces depend on each other: the design's rule, read from the sources."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from layout import ENTRANCES, PACKAGE, imports, levels, modules, room

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
TORCH = re.compile(r"^(torch|ATen|c10|pybind11|Python\.h)(/|$|\.)")
CUDA = re.compile(r"^(cuda|cub|thrust|cooperative_groups)")

# What each folder may include of the project, and whether it may see Torch and CUDA.
ROOMS = {
    "csrc/core": ({"core"}, False, False),
    "csrc/cpu": ({"core", "cpu"}, False, False),
    "cuda": ({"core", "cuda"}, False, True),
    "csrc/ops": ({"core", "cpu", "cuda", "ops"}, True, False),
    "csrc/nn": ({"core", "ops", "nn"}, True, False),
}

# The rooms of the Python library, each with those that its modules may import from; what lies at the top of the package
# (the checks of arguments, optional packages) is below them all. `lab`, where the experiments are, may import anything,
# and nothing imports it but the command's entrance.
PYTHON_ROOMS: dict[str, set[str]] = {
    "ops": set(),
    "nn": {"ops"},
    "rewiring": {"ops", "nn"},
    "models": {"ops", "nn"},
    "checkpoint": {"ops", "nn"},
    "analysis": {"ops", "nn"},
    "integrations": {"ops", "nn", "rewiring", "models", "checkpoint"},
}
TOP = {"__init__", "__main__", "_arguments", "_extras", "_moved", "_native", "info"}
LEVELS = 7


def sources(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]


def includes(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text(encoding="utf-8"))


def test_the_reader_of_includes_reads():
    assert "cpu/kernels.h" in includes(ROOT / "csrc/cpu/isa/avx2.cpp")
    assert any(TORCH.match(name) for path in sources("csrc/ops") for name in includes(path))
    assert TORCH.match("torch/library.h") and TORCH.match("ATen/ATen.h") and not TORCH.match("core/norm.h")


@pytest.mark.parametrize("folder", ROOMS)
def test_includes_go_one_way(folder):
    allowed, torch_allowed, cuda_allowed = ROOMS[folder]
    rooms = {"core", "cpu", "cuda", "ops", "nn"}
    for path in sources(folder):
        for name in includes(path):
            room = name.split("/")[0]
            where = f"{path.relative_to(ROOT)} includes {name}"
            assert torch_allowed or not TORCH.match(name), where
            if room in rooms and "/" in name:
                assert room in allowed, where
            else:
                assert cuda_allowed or torch_allowed or not CUDA.match(name), where


def test_the_public_header_needs_nothing_of_the_project():
    names = includes(ROOT / "csrc/nn/dendnorm.h")
    assert any(name.startswith("torch/") for name in names)
    assert all(name.startswith("torch/") or "/" not in name for name in names)


def test_every_source_lies_in_a_room():
    known = [*ROOMS, "csrc/bindings.cpp"]
    for path in [*sources("csrc"), *sources("cuda")]:
        name = str(path.relative_to(ROOT))
        assert any(name == room or name.startswith(room + "/") for room in known), name


# What a compiler, a processor or a system has in its own way, and the places that know of it (core/platform.h).
OWN_WAY = re.compile(
    r"__linux__|__unix__|__APPLE__|_WIN32|_MSC_VER|__GNUC__|__clang__|__x86_64__|__aarch64__|__attribute__|__declspec"
    r"|\bunistd\.h|<sys/|\bfcntl\.h|intrin\.h|cpuid\.h|__builtin_cpu|\bmadvise\b|getcsr|setcsr"
)
KNOWS = (
    "csrc/core/platform.h",
    "csrc/cpu/isa/",
    "csrc/cpu/dispatch.cpp",
    "csrc/nn/replace_file.cpp",
    "csrc/nn/dendnorm.h",
)


def test_what_is_platform_specific_is_behind_one_header():
    knowing = {str(path.relative_to(ROOT)) for path in [*sources("csrc"), *sources("cuda")]
               if OWN_WAY.search(path.read_text(encoding="utf-8"))}  # fmt: skip
    assert {name for name in knowing if not name.startswith(KNOWS)} == set()
    assert {place for place in KNOWS if not any(name.startswith(place) for name in knowing)} == set()


def test_the_reader_of_imports_reads():
    assert imports("nn.linear", modules()["nn.linear"]) >= {"ops.library", "nn.pattern", "nn.norms", "_arguments"}
    assert "lab.cli" in imports("__main__", modules()["__main__"])
    lazily = "info"  # within a function
    assert lazily in imports("lab.cli.info", modules()["lab.cli.info"])
    assert lazily not in imports("lab.cli.info", modules()["lab.cli.info"], every=False)


def test_every_module_lies_in_a_room():
    assert {room(name) for name in modules()} == TOP | PYTHON_ROOMS.keys() | {"lab"}


def test_nothing_outside_the_lab_imports_it():
    for name, path in modules().items():
        if room(name) not in ("lab", "__main__"):
            assert "lab" not in {room(other) for other in imports(name, path)}, name


@pytest.mark.parametrize("own", PYTHON_ROOMS)
def test_rooms_import_one_way(own):
    for name, path in modules().items():
        if room(name) == own:
            for other in imports(name, path):
                assert room(other) in {own, *PYTHON_ROOMS[own], *TOP} - ENTRANCES, f"{name} imports {other}"


def test_no_circle_and_few_levels():
    found = levels()
    assert max(found.values()) <= LEVELS, sorted(found.items(), key=lambda item: -item[1])[:5]


def test_a_circle_in_the_lab_is_none_either():
    names = {name: path for name, path in modules().items() if room(name) == "lab"}
    done: set[str] = set()

    def follow(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join((*above, name))}"
        if name not in done:
            for other in imports(name, names[name]) & names.keys():
                follow(other, (*above, name))
            done.add(name)

    for name in names:
        follow(name, ())


def test_what_is_public():
    """`dir(dendnorm)` shows what is public and nothing else; plots and lab load when first named."""
    program = """
import sys, dendnorm
public = {"SET", "FrozenLinear", "Norm", "Pattern", "RigL", "SReLU", "Slab", "SparseConv1d", "SparseConv2d",
          "SparseLinear", "analysis", "batch_innermost", "checkpoint", "decompositions", "densify", "densities", "drop",
          "freeze", "functional", "grow", "integrations", "lab", "load", "norms", "param_groups", "patterns", "plots",
          "resize", "save", "schedules", "sparsify", "summary", "__version__", "cmake_prefix_path"}
assert set(dir(dendnorm)) == public, set(dir(dendnorm)) ^ public
loaded = [name for name in sys.modules if name.startswith(("dendnorm.lab", "dendnorm.analysis.pictures"))]
assert not loaded and "matplotlib" not in sys.modules, loaded
assert dendnorm.plots.distributions and dendnorm.lab and dendnorm.integrations
from dendnorm import plots
for name in public:
    assert getattr(dendnorm, name) is not None
try:
    dendnorm.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_modules_of_version_0_1_are_found():
    """Pickles name them."""
    program = """
import importlib, dendnorm
names = {"layers": "SparseLinear", "norms": "Norm", "functional": "Pattern", "rewiring": "SET", "drop": "Magnitude",
         "grow": "Random", "activations": "SReLU", "reports": "RewireReport", "schedules": "Cosine",
         "convert": "sparsify", "observing": "Turn", "analysis": "TopologyChange", "summaries": "Summary",
         "checkpoint": "save", "resizing": "resize"}
for module, name in names.items():
    found = importlib.import_module(f"dendnorm.{module}")
    assert getattr(found, name) is not None and getattr(dendnorm, module) is found, module
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert settings["tool"]["setuptools"]["packages"]["find"]["where"] == ["python"]
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        assert (folder / "__init__.py").exists(), folder
    assert (PACKAGE / "py.typed").exists()
    assert settings["tool"]["setuptools"]["package-data"]["dendnorm"] == ["py.typed", "_C.pyi"]


def test_what_version_0_1_called_its_modules_are_modules():
    from types import ModuleType

    from dendnorm import _moved

    for name, place in _moved._MOVED.items():
        module = sys.modules[f"dendnorm.{name}"]
        assert isinstance(module, ModuleType), name
        assert module.__name__ == f"dendnorm.{place}"
