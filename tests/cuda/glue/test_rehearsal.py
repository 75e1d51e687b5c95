"""`make gpu-check` from end to end on devices that the host stands in for: every step but the compiler's, which is
answered with the package that is there, and compute-sanitizer, in whose place a script runs the program."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import on_host
import pytest
import torch

import dendnorm

if on_host.LIBRARY is None:
    pytest.skip("needs DENDNORM_ON_HOST, the library that the build with tests makes", allow_module_level=True)

PATH = Path(__file__).parents[2] / "gpu" / "check.py"
spec = importlib.util.spec_from_file_location("gpu_check", PATH)
check = importlib.util.module_from_spec(spec)
sys.modules["gpu_check"] = check
spec.loader.exec_module(check)

# As compute-sanitizer is called: two options with values, and then the program.
SANITIZER = """#!/bin/sh
shift 4
echo "========= COMPUTE-SANITIZER, in whose place this runs"
exec "$@"
"""


def test_every_step_runs_to_its_end(tmp_path, monkeypatch):
    program = tmp_path / "compute-sanitizer"
    program.write_text(SANITIZER)
    program.chmod(0o755)
    real = check.find_program
    found = {"compute-sanitizer": str(program), "nvcc": sys.executable}
    monkeypatch.setattr(check, "find_program", lambda name, variable="": found.get(name) or real(name, variable))
    monkeypatch.setattr(torch.version, "cuda", "none, for the host stands in for it")
    package = Path(dendnorm.__file__).parent
    copy = f"import shutil; shutil.copytree({str(package)!r}, {str(tmp_path / 'out/package/dendnorm')!r})"
    steps = check.the_steps

    def with_this_package(*arguments):
        build, *others = steps(*arguments)
        assert "-DDENDNORM_CUDA=ON" in build.command and "-DCMAKE_CUDA_ARCHITECTURES=90" in build.command
        assert build.environment == {"CUDACXX": sys.executable}
        return [dataclasses.replace(build, command=[sys.executable, "-c", copy], lacks=""), *others]

    monkeypatch.setattr(check, "the_steps", with_this_package)
    code = check.main(["--quick", "--out", str(tmp_path / "out"), "--budget", "3000"])
    text = (tmp_path / "out" / "gpu-check.txt").read_text()
    assert code == 0, text
    written = json.loads((tmp_path / "out" / "gpu-check.json").read_text())
    assert "sm_90" in written["facts"]["device"]
    by_name = {step["name"]: step for step in written["steps"]}
    assert {step["status"] for step in written["steps"]} == {"passed"}, text
    shapes = by_name["benchmark"]["result"]["shapes"]
    assert shapes and all(shape["device"] == "cuda" for shape in shapes)
    times = shapes[0]["contenders"]
    assert "median_ms" in times["dendnorm"] and "median_ms" in times["dendnorm, graph"]
    assert by_name["training"]["result"]
    for name in ("memcheck", "racecheck"):
        assert by_name[f"compute-sanitizer {name}"]["output"].endswith("done")
