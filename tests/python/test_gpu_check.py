"""The driver of `make gpu-check` without a GPU: that it says so, and that its steps end as they should."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[1] / "gpu" / "check.py"
spec = importlib.util.spec_from_file_location("gpu_check", PATH)
check = importlib.util.module_from_spec(spec)
sys.modules["gpu_check"] = check
spec.loader.exec_module(check)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence():
    result = subprocess.run([sys.executable, str(PATH)], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("gpu-check: ")
    assert "CUDA" in line or "GPU" in line


def test_a_failed_step_stops_only_what_needs_it(tmp_path):
    kept = tmp_path / "kept.json"
    steps = [
        check.Step("good", python("print('fine')"), 20),
        check.Step("bad", python("raise SystemExit(3)"), 20),
        check.Step("after bad", python("print('never')"), 20, needs=("bad",)),
        check.Step("writes", python(f"open({str(kept)!r}, 'w').write('[1, 2]')"), 20, needs=("good",), keep=kept),
        check.Step("no tool", python("pass"), 20, lacks="a-tool-that-nobody-has is not installed"),
        check.Step("sees its environment", python("import os; print(os.environ['SEEN'])"), 20, {"SEEN": "yes"}),
    ]
    outcomes = check.run_steps(steps, tmp_path / "out", 60, {"device": "none"})
    assert [outcome.status for outcome in outcomes] == ["passed", "failed", "skipped", "passed", "skipped", "passed"]
    assert outcomes[0].output == "fine"
    assert "3" in outcomes[1].reason
    assert "bad" in outcomes[2].reason
    assert outcomes[3].result == [1, 2]
    assert "a-tool-that-nobody-has" in outcomes[4].reason
    assert outcomes[5].output == "yes"
    written = json.loads((tmp_path / "out" / "gpu-check.json").read_text())
    assert [step["status"] for step in written["steps"]] == [outcome.status for outcome in outcomes]
    text = (tmp_path / "out" / "gpu-check.txt").read_text()
    assert "device: none" in text
    assert "fine" in text


def test_a_step_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    child = f"import time; time.sleep(3); open({str(tmp_path / 'alive')!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(600)"
    steps = [check.Step("hangs", python(code), 1.5), check.Step("goes on", python("pass"), 20)]
    outcomes = check.run_steps(steps, tmp_path / "out", 60, {})
    assert [outcome.status for outcome in outcomes] == ["timed out", "passed"]
    time.sleep(3)
    assert not (tmp_path / "alive").exists()


def test_the_budget_holds_for_all_steps_together(tmp_path):
    steps = [check.Step(f"step {k}", python("import time; time.sleep(600)"), 600) for k in range(3)]
    start = time.monotonic()
    outcomes = check.run_steps(steps, tmp_path / "out", 2, {})
    assert time.monotonic() - start < 60
    assert outcomes[0].status == "timed out"
    assert [outcome.status for outcome in outcomes[1:]] == ["timed out", "timed out"]  # not run is not passed


def test_what_a_step_leaves_unspent_the_next_ones_have(tmp_path):
    slow = python("import time; time.sleep(3)")
    steps = [check.Step("quick", python("pass"), 20), check.Step("slow", slow, 1)]
    outcomes = check.run_steps(steps, tmp_path / "out", 60, {})
    assert [outcome.status for outcome in outcomes] == ["passed", "passed"]
    outcomes = check.run_steps(steps[1:], tmp_path / "out", 60, {})
    assert [outcome.status for outcome in outcomes] == ["timed out"]


def test_a_step_is_interrupted_before_it_is_ended(tmp_path):
    kept = tmp_path / "kept.json"
    code = f"""
import time
try:
    time.sleep(600)
except KeyboardInterrupt:
    open({str(kept)!r}, "w").write('{{"shapes": [1]}}')
    print("interrupted")
"""
    (outcome,) = check.run_steps([check.Step("slow", python(code), 8, keep=kept)], tmp_path / "out", 60, {})
    assert (outcome.status, outcome.result, outcome.output) == ("timed out", {"shapes": [1]}, "interrupted")


def test_a_half_written_file_is_no_result(tmp_path):
    kept = tmp_path / "kept.json"
    code = f"open({str(kept)!r}, 'w').write('[1, 2')"
    (outcome,) = check.run_steps([check.Step("writes", python(code), 20, keep=kept)], tmp_path / "out", 60, {})
    assert (outcome.status, outcome.result) == ("passed", None)


def test_a_benchmark_that_takes_too_long_leaves_what_it_measured(tmp_path):
    shapes = ["64,48,8,0.2"] + ["4096,4096,1024,0.2"] * 40
    command = [sys.executable, "-m", "dendnorm", "bench", "--no-sweeps", "--rounds", "1", "--out", str(tmp_path)]
    command += ["--contender", "dendnorm", "--shape", *shapes]
    step = check.Step("benchmark", command, 24, keep=tmp_path / "bench.json")
    (outcome,) = check.run_steps([step], tmp_path / "out", 60, {})
    assert outcome.status == "timed out"
    assert outcome.result["shapes"][0]["shape"]["in"] == 64
    assert len(outcome.result["shapes"]) < len(shapes)


@pytest.mark.parametrize(
    ("printed", "code", "status"),
    [
        ("========= Error: no device that it knows", 1, "skipped"),
        ("========= Error: Device not supported. Please refer to the documentation", 255, "skipped"),
        ("========= Invalid __global__ read of size 4 bytes", 9, "failed"),
        ("========= Error: a fault all the same", 9, "failed"),
        ("========= Error: process didn't terminate successfully", 1, "failed"),
        ("AssertionError", 1, "failed"),
    ],
)
def test_a_sanitizer_that_refuses_the_device_is_no_failure(tmp_path, printed, code, status):
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\nexit {code}\n")
    program.chmod(0o755)
    (step,) = [step for step in check.the_steps("cuda", tmp_path, "90") if "memcheck" in step.name]
    command = [str(program), *step.command[1:]]
    step = dataclasses.replace(step, command=command, needs=(), lacks="")
    assert step.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    (outcome,) = check.run_steps([step], tmp_path / "out", 60, {})
    assert outcome.status == status
    assert (printed in outcome.reason) == (status == "skipped")


def test_what_the_machine_lacks_is_named_and_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "find_program", lambda name, variable="": None)
    monkeypatch.setattr(check.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(check, "without", lambda *names: f"not installed: {', '.join(names)}")
    steps = check.the_steps("cuda", tmp_path, "90")
    outcomes = {outcome.name: outcome for outcome in check.run_steps(steps, tmp_path / "out", 60, {})}
    assert {outcome.status for outcome in outcomes.values()} == {"skipped"}
    reason = outcomes["build"].reason
    assert all(part in reason for part in ("nvcc", "cmake", "ninja", str(tmp_path / "Python.h")))
    written = json.loads((tmp_path / "out" / "gpu-check.json").read_text())
    assert written["steps"][0]["reason"] == reason
    by_name = {step.name: step for step in steps}
    assert by_name["tests of the device"].lacks == "not installed: pytest"
    assert "matplotlib" in by_name["training"].lacks
    assert "compute-sanitizer" in by_name["compute-sanitizer racecheck"].lacks


def test_programs_are_found_off_the_path(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvcc-of-a-test"
    program.write_text("")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert check.find_program("nvcc-of-a-test") is None  # not a program
    program.chmod(0o755)
    assert check.find_program("nvcc-of-a-test") == str(program)
    monkeypatch.setenv("CUDACXX", "named")
    assert check.find_program("nvcc-of-a-test", "CUDACXX") == "named"


def test_the_suite_is_shared_among_processes_where_that_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr(check.os, "cpu_count", lambda: 16)
    for installed in (True, False):
        monkeypatch.setattr(check, "without", lambda *names, installed=installed: "" if installed else "not installed")
        (suite,) = [step for step in check.the_steps("cuda", tmp_path, "90") if "suite" in step.name]
        assert ("-n" in suite.command) == installed
        assert not any(word.startswith("--maxfail") for word in suite.command)


def test_steps_come_in_order_and_their_limits_fit(tmp_path):
    steps = check.the_steps("cuda", tmp_path, "90")
    words = ("build", "tests of the device", "benchmark", "memcheck", "racecheck", "suite", "training")
    assert len(steps) == len(words)
    assert all(word in step.name for word, step in zip(words, steps, strict=True))
    assert sum(step.limit for step in steps) == check.BUDGET < 540  # seconds: nine minutes


def test_steps_name_files_that_exist(tmp_path):
    for device in ("cuda", "cpu"):
        for step in check.the_steps(device, tmp_path, "90"):
            for word in step.command:
                assert not word.startswith("tests/") or (check.ROOT / word).exists(), word
