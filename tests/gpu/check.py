"""`make gpu-check`: everything that needs a GPU, in one go, with what the current Python has.

Needs PyTorch 2.11 or newer with CUDA, nvcc, CMake, ninja and pytest; no network, and no GoogleTest. Builds into
build/gpu, runs the tests and the suite of tests/python on the device, compute-sanitizer where there is one, the
benchmark and a training run. Every step has a time limit, and a failed one does not stop the next. Writes
gpu-check.json and gpu-check.txt.

    python tests/gpu/check.py [--device cpu] [--out build/gpu] [--budget SECONDS]

--device cpu goes the same way without a GPU, to see that the steps themselves are sound.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TAIL = 40  # lines of a step's output that the text keeps


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str]
    limit: float  # seconds
    environment: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # steps without which this one makes no sense
    keep: Path | None = None  # a JSON file that it writes, taken into the report
    tool: str | None = None  # a program that may be missing


@dataclass
class Outcome:
    name: str
    status: str  # passed, failed, timed out, skipped
    seconds: float = 0.0
    reason: str = ""
    output: str = ""
    result: object = None


def run_step(step: Step, limit: float, log: Path) -> Outcome:
    """One step, with all that it started ended when its time is over."""
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(step.command, cwd=ROOT, env=os.environ | step.environment, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            code = process.wait(timeout=limit)
            status, reason = ("passed", "") if code == 0 else ("failed", f"exit status {code}")
        except subprocess.TimeoutExpired:
            status, reason = "timed out", f"after {limit:.0f} seconds"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return Outcome(step.name, status, time.monotonic() - start, reason, "\n".join(lines[-TAIL:]))


def run_steps(steps: list[Step], out: Path, budget: float, facts: dict[str, object]) -> list[Outcome]:
    """All steps within `budget` seconds; the report is rewritten after each, so that an interruption keeps it."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + budget
    outcomes: list[Outcome] = []
    for number, step in enumerate(steps):
        missing = [name for name in step.needs if not any(o.name == name and o.status == "passed" for o in outcomes)]
        left = end - time.monotonic()
        if missing:
            outcome = Outcome(step.name, "skipped", reason=f"without {', '.join(missing)}")
        elif step.tool and not shutil.which(step.tool):
            outcome = Outcome(step.name, "skipped", reason=f"{step.tool} is not installed")
        elif left < 1:
            outcome = Outcome(step.name, "timed out", reason=f"no time left of {budget:.0f} seconds")
        else:
            if step.keep:
                step.keep.unlink(missing_ok=True)
            print(f"=== {step.name}", flush=True)
            outcome = run_step(step, min(step.limit, left), out / f"{number}.log")
            if step.keep and step.keep.exists():
                outcome.result = json.loads(step.keep.read_text(encoding="utf-8"))
        print(f"{outcome.name}: {outcome.status} {outcome.reason} ({outcome.seconds:.0f} s)", flush=True)
        outcomes.append(outcome)
        write(outcomes, out, facts)
    return outcomes


def write(outcomes: list[Outcome], out: Path, facts: dict[str, object]) -> None:
    content = {"facts": facts, "steps": [asdict(outcome) for outcome in outcomes]}
    (out / "gpu-check.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    lines = [f"{name}: {value}" for name, value in facts.items()] + [""]
    for outcome in outcomes:
        lines.append(f"{outcome.status:10} {outcome.seconds:6.1f} s  {outcome.name}  {outcome.reason}".rstrip())
    for outcome in outcomes:
        lines += ["", f"==== {outcome.name}", outcome.output]
    (out / "gpu-check.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def the_steps(device: str, out: Path, architecture: str) -> list[Step]:
    python = sys.executable
    on_gpu = device == "cuda"
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (out / "package", ROOT / "tests" / "python")))}
    options = [f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"] if on_gpu else []
    build = [python, "tests/build_package.py", str(out), f"-DDENDNORM_CUDA={'ON' if on_gpu else 'OFF'}", *options]
    suite = ["oracle", "ops", "gradients", "set", "layer", "norms", "errors"]
    # Not hours of the same: the tests of corners, of every norm and of rewiring.
    files = [f"tests/python/test_{name}.py" for name in (suite if on_gpu else ["errors"])]
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    on_device = paths | {"DENDNORM_TEST_DEVICE": device}
    small = [python, "tests/gpu/small_case.py"]
    racecheck = ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9", *small]
    memcheck = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", *small]
    bench = [python, "-m", "dendnorm", "bench", "--device", device, "--out", str(out / "bench")]
    train = [python, "-m", "dendnorm", "train", "--device", device, "--out", str(out / "train"), "--trials", "1"]
    if not on_gpu:
        bench += ["--no-sweeps", "--shape", "64,48,8,0.2", "--rounds", "2"]
    kept = out / "bench" / "bench.json"
    built = ("build",)
    return [
        Step("build", build, 240),
        Step("tests of the device", [*pytest, "tests/gpu"], 90, paths, built),
        Step("the suite on the device", [*pytest, "--maxfail=20", *files], 180, on_device, built),
        Step("compute-sanitizer memcheck", memcheck, 60, paths, built, tool="compute-sanitizer"),
        Step("compute-sanitizer racecheck", racecheck, 60, paths, built, tool="compute-sanitizer"),
        Step("benchmark", bench, 150, paths, built, keep=kept),
        Step("training", [*train, "--epochs", "3"], 60, paths, built, keep=out / "train" / "results.json"),
    ]


def refuse(reason: str) -> int:
    print(f"gpu-check: {reason}", file=sys.stderr)
    return 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--budget", type=float, default=530, help="seconds for all steps together")
    given = parser.parse_args(arguments)
    try:
        import torch
    except ImportError:
        return refuse(f"needs PyTorch with CUDA, and {sys.executable} has none; name another Python with PYTHON=")
    architecture = ""
    facts: dict[str, object] = {"torch": torch.__version__, "torch's CUDA": torch.version.cuda, "device": "cpu"}
    if given.device == "cuda":
        if not torch.version.cuda:
            return refuse(f"needs PyTorch with CUDA, and {torch.__version__} is a build without it")
        if not torch.cuda.is_available():
            return refuse("there is no GPU that PyTorch can use on this machine, so there is nothing to check")
        properties = torch.cuda.get_device_properties(0)
        architecture = f"{properties.major}{properties.minor}"
        facts["device"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{architecture}"
    outcomes = run_steps(
        the_steps(given.device, given.out.resolve(), architecture), given.out.resolve(), given.budget, facts
    )
    bad = [outcome.name for outcome in outcomes if outcome.status in ("failed", "timed out")]
    left_out = [outcome.name for outcome in outcomes if outcome.status not in ("passed", "failed", "timed out")]
    print(f"Written to {given.out}: gpu-check.json and gpu-check.txt")
    print(f"Not passed: {', '.join(bad)}." if bad else "Everything that ran passed.")
    if left_out:
        print(f"Not run: {', '.join(left_out)}.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
