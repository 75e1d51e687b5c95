"""`make gpu-check` from end to end on devices that the host stands in for: every step but the compiler's, which is
answered with the package that is there, and compute-sanitizer, in whose place a script runs the program. Then what may
go wrong on a machine that nobody has seen yet."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

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
RUNS = """#!/bin/sh
shift 4
echo "========= COMPUTE-SANITIZER, in whose place this runs"
exec "$@"
"""
REFUSES = """#!/bin/sh
echo "========= Error: Device not supported. Please refer to the documentation"
exit 255
"""
FINDS = """#!/bin/sh
echo "========= Invalid __global__ read of size 4 bytes"
exit 9
"""


class Machine:
    """What gpu-check finds."""

    scale = 6  # times the limits that steps have on a device

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out = folder / "out"
        self.patch = monkeypatch
        self.programs: dict[str, str | None] = {"nvcc": sys.executable}
        self.change: Any = lambda step: step
        self.sanitizer = folder / "compute-sanitizer"
        self.use_sanitizer(RUNS)
        find, steps = check.find_program, check.the_steps
        monkeypatch.setattr(
            check, "find_program", lambda name, variable="": self.programs.get(name, find(name, variable))
        )
        monkeypatch.setattr(
            check, "the_steps", lambda *given: [self.change(self.built(step)) for step in steps(*given)]
        )
        monkeypatch.setattr(torch.version, "cuda", "none, for the host stands in for it")

    def use_sanitizer(self, text: str) -> None:
        self.sanitizer.write_text(text)
        self.sanitizer.chmod(0o755)
        self.programs["compute-sanitizer"] = str(self.sanitizer)

    def built(self, step: Any) -> Any:
        """The step, with the package that is there for what nvcc would make."""
        if step.name != "build" or step.lacks:
            return step
        assert "-DDENDNORM_CUDA=ON" in step.command
        assert "-DCMAKE_CUDA_ARCHITECTURES=90" in step.command
        assert step.environment == {"CUDACXX": sys.executable}
        package = str(Path(dendnorm.__file__).parent)
        copy = f"import shutil; shutil.copytree({package!r}, {str(self.out / 'package/dendnorm')!r})"
        return dataclasses.replace(step, command=[sys.executable, "-c", copy])

    def run(self, *names: str) -> tuple[int, dict[str, dict[str, Any]], str]:
        """The status of gpu-check, its steps by name, and its text; only the named steps where some are."""
        if names:
            steps = check.the_steps
            self.patch.setattr(check, "the_steps", lambda *given: [s for s in steps(*given) if s.name in names])
        code = check.main(["--quick", "--out", str(self.out), "--budget", str(self.scale * check.BUDGET)])
        written = json.loads((self.out / "gpu-check.json").read_text())
        assert "sm_90" in written["facts"]["device"]
        return code, {step["name"]: step for step in written["steps"]}, (self.out / "gpu-check.txt").read_text()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


# A device is slow here, and all of tests/gpu runs by itself.
SMALLER = {"tests of the device": ["-k", "refused or default"], "training": ["--hidden", "10", "--batch", "300"]}


def test_every_step_runs_to_its_end(machine):
    machine.change = lambda step: dataclasses.replace(step, command=[*step.command, *SMALLER.get(step.name, [])])
    code, steps, text = machine.run()
    assert code == 0, text
    assert {step["status"] for step in steps.values()} == {"passed"}, text
    shapes = steps["benchmark"]["result"]["shapes"]
    assert shapes and all(shape["device"] == "cuda" for shape in shapes)
    times = shapes[0]["contenders"]
    assert "median_ms" in times["dendnorm"] and "median_ms" in times["dendnorm, graph"]
    assert steps["training"]["result"]
    for name in ("memcheck", "racecheck"):
        assert steps[f"compute-sanitizer {name}"]["output"].endswith("done")


def test_what_the_build_lacks_is_named_and_all_else_left_out(machine, tmp_path):
    machine.programs["nvcc"] = None
    machine.patch.setattr(check.sysconfig, "get_path", lambda name: str(tmp_path))
    code, steps, text = machine.run()
    assert code == 1
    assert {step["status"] for step in steps.values()} == {"skipped"}
    reason = steps["build"]["reason"]
    assert "nvcc" in reason and str(tmp_path / "Python.h") in reason
    assert reason in text
    assert all("without build" in step["reason"] for step in steps.values() if step["name"] != "build")


def test_a_sanitizer_that_refuses_the_device_is_left_out(machine):
    machine.use_sanitizer(REFUSES)
    code, steps, text = machine.run("build", "compute-sanitizer memcheck", "compute-sanitizer racecheck")
    assert code == 0, text
    for name in ("memcheck", "racecheck"):
        step = steps[f"compute-sanitizer {name}"]
        assert (step["status"], "Device not supported" in step["reason"]) == ("skipped", True)


def test_a_benchmark_that_outlasts_its_limit_leaves_what_it_measured(machine):
    shapes = ["64,48,8,0.2"] + ["600,400,256,0.5"] * 100

    def longer(step):
        # What the build leaves of its limit is for the benchmark.
        if step.name == "build":
            return dataclasses.replace(step, limit=20 / machine.scale)
        if step.name != "benchmark":
            return step
        at = step.command.index("--shape")
        command = [*step.command[:at], "--contender", "dendnorm", "--shape", *shapes, *step.command[at + 2 :]]
        return dataclasses.replace(step, command=command, limit=50 / machine.scale)

    machine.change = longer
    code, steps, text = machine.run("build", "benchmark", "compute-sanitizer memcheck")
    assert code == 1
    assert steps["benchmark"]["status"] == "timed out", text
    measured = steps["benchmark"]["result"]["shapes"]
    assert measured[0]["shape"]["in"] == 64
    assert len(measured) < len(shapes)
    assert steps["compute-sanitizer memcheck"]["status"] == "passed", text


def test_a_build_that_fails_is_told_with_the_compilers_words(machine):
    def broken(step):
        if step.name != "build":
            return step
        code = "import sys; print('traversal.cu(7): error: identifier is undefined'); sys.exit(1)"
        return dataclasses.replace(step, command=[sys.executable, "-c", code])

    machine.change = broken
    code, steps, text = machine.run()
    assert code == 1
    assert steps["build"]["status"] == "failed"
    assert "error: identifier is undefined" in text
    assert {step["status"] for name, step in steps.items() if name != "build"} == {"skipped"}


def test_faults_that_the_sanitizer_finds_are_failures(machine):
    machine.use_sanitizer(FINDS)
    code, steps, text = machine.run("build", "compute-sanitizer memcheck", "benchmark")
    assert code == 1
    assert steps["compute-sanitizer memcheck"]["status"] == "failed"
    assert "Invalid __global__ read" in text
    assert steps["benchmark"]["status"] == "passed", text


def test_what_only_pictures_need_is_no_loss_to_the_benchmark(machine, tmp_path):
    # As if matplotlib were not installed: for this process, and for those that it starts.
    (tmp_path / "matplotlib.py").write_text(
        "raise ModuleNotFoundError('No module named matplotlib', name='matplotlib')"
    )
    without = check.without
    machine.patch.setattr(
        check, "without", lambda *names: "not installed: matplotlib" if "matplotlib" in names else without(*names)
    )

    def hidden(step):
        paths = os.pathsep.join([str(tmp_path), step.environment.get("PYTHONPATH", "")])
        return dataclasses.replace(step, environment=step.environment | {"PYTHONPATH": paths})

    machine.change = lambda step: hidden(step) if step.name == "benchmark" else step
    code, steps, text = machine.run("build", "benchmark", "training")
    assert code == 0, text
    assert steps["benchmark"]["status"] == "passed", text
    assert steps["benchmark"]["result"]["shapes"]
    assert (steps["training"]["status"], steps["training"]["reason"]) == ("skipped", "not installed: matplotlib")


def test_without_xdist_the_suite_runs_in_one_process(machine):
    without = check.without
    machine.patch.setattr(check, "without", lambda *names: "not installed" if names == ("xdist",) else without(*names))
    commands = []

    def seen(step):
        commands.append(step.command)
        return step

    machine.change = seen
    code, steps, text = machine.run("build", "the suite on the device")
    assert code == 0, text
    assert steps["the suite on the device"]["status"] == "passed"
    assert not any("-n" in command for command in commands)
