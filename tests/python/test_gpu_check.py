"""The driver of `make gpu-check` without a GPU: that it says so, and that its steps end as they should."""

from __future__ import annotations

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
        check.Step("no tool", python("pass"), 20, tool="a-tool-that-nobody-has"),
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


def test_steps_name_files_that_exist(tmp_path):
    for device in ("cuda", "cpu"):
        steps = check.the_steps(device, tmp_path, "90")
        assert sum(step.limit for step in steps) < 900
        for step in steps:
            for word in step.command:
                assert not word.startswith("tests/") or (check.ROOT / word).exists(), word
