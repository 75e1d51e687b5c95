"""Which way the pieces depend on each other: the design's rule, read from the sources."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

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

# The Python modules, each with what it may import of the package when it is loaded.
LAYERS = ["_version", "_ops", "_batching", "_flops", "_extras", "_report", "norms", "functional", "layers",
          "allocation", "convert", "schedules", "observing", "similarity", "drop", "grow", "reports", "moving",
          "rewiring", "resizing", "container", "checkpoint", "summaries", "activations", "analysis", "data", "info",
          "plots", "training", "trials", "paper_plots", "paper", "bench_contenders", "bench_cuda", "bench",
          "cli", "__main__"]  # fmt: skip


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


# Those of dendnorm.integrations, which sees the package up to the summaries, and which nothing else sees.
INTEGRATIONS = ["core", "averages", "fsdp", "_lightning", "lightning", "pytorch_lightning", "transformers"]


def imports(path: Path, level: int = 1) -> set[str]:
    """The package's modules that a module imports when it is loaded; imports inside functions run later."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.level == level:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


def test_python_modules_import_downwards():
    package = ROOT / "python" / "dendnorm"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "_version"}
    assert modules == set(LAYERS) - {"_version"}, "a new module needs its place in LAYERS"
    for module in modules:
        for name in imports(package / f"{module}.py"):
            assert LAYERS.index(name) < LAYERS.index(module), f"{module} imports {name}"


def test_integrations_import_downwards():
    folder = ROOT / "python" / "dendnorm" / "integrations"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(INTEGRATIONS)
    below = LAYERS[: LAYERS.index("summaries") + 1]
    for module in INTEGRATIONS:
        for name in imports(folder / f"{module}.py"):
            assert INTEGRATIONS.index(name) < INTEGRATIONS.index(module), f"{module} imports {name}"
        assert imports(folder / f"{module}.py", level=2) <= set(below), module


def test_every_package_is_listed_for_installation():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = {path.parent.relative_to(ROOT / "python") for path in (ROOT / "python").rglob("__init__.py")}
    assert set(settings["tool"]["setuptools"]["packages"]) == {".".join(path.parts) for path in folders}
