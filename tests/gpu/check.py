"""`make gpu-check`: everything that needs a GPU, in one go, with what the current Python has.

Needs PyTorch 2.11 or newer with CUDA, nvcc, CMake, ninja and pytest; no network, and no GoogleTest. Builds into
build/gpu, runs the tests of the device, the benchmark, compute-sanitizer, the suite of tests/python on the device and a
training run. What a step needs and this machine lacks is named, and the step skipped; a failed step stops only those
that need it. A step that takes too long is interrupted, so that it can write what it has, and then ended. Writes
gpu-check.json and gpu-check.txt.

    python tests/gpu/check.py [--device cpu] [--quick] [--out build/gpu] [--budget SECONDS]

--device cpu goes the same way without a GPU, and --quick does a little of every step, to see that they are sound.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TAIL = 40  # lines of a step's output that the text keeps
BUDGET = 530  # seconds for all steps, of nine minutes; their limits add up to it
GRACE = 8.0  # seconds of its limit that a step has to write what it has, once it was interrupted


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str]
    limit: float  # seconds; what it leaves unspent is for those after it
    environment: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # steps without which this one makes no sense
    keep: Path | None = None  # a JSON file that it writes, taken into the report
    lacks: str = ""  # what it needs and this machine does not have
    refusal: str = ""  # a line of its output, as an expression, with which a tool says that it cannot work here,
    verdict: int = -1  # unless it ends with this status, by which it tells of faults


@dataclass
class Outcome:
    name: str
    status: str  # passed, failed, timed out, skipped
    seconds: float = 0.0
    reason: str = ""
    output: str = ""
    result: object = None


def heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so does all that is started from there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen, grace: float) -> None:
    """Interrupt a step, wait a little, and end all that it started."""
    for number, patience in ((signal.SIGINT, grace), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue


def run_step(step: Step, limit: float, log: Path) -> Outcome:
    """One step, with all that it started ended when its time is over."""
    start = time.monotonic()
    grace = min(GRACE, limit / 4)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(step.command, cwd=ROOT, env=os.environ | step.environment, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True,
                                   preexec_fn=heed_interrupts)  # fmt: skip
        try:
            code = process.wait(timeout=limit - grace)
            status, reason = ("passed", "") if code == 0 else ("failed", f"exit status {code}")
        except subprocess.TimeoutExpired:
            status, reason = "timed out", f"after {limit - grace:.0f} seconds"
        finally:
            end(process, grace)
    text = log.read_text(encoding="utf-8", errors="replace")
    refused = re.search(step.refusal, text, re.MULTILINE) if step.refusal else None
    if status == "failed" and refused and code != step.verdict:
        status, reason = "skipped", f"cannot work here: {refused.group().strip()}"
    return Outcome(step.name, status, time.monotonic() - start, reason, "\n".join(text.splitlines()[-TAIL:]))


def kept(path: Path) -> object:
    """What a step wrote, also one that was ended; None where it wrote nothing whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def run_steps(steps: list[Step], out: Path, budget: float, facts: dict[str, object]) -> list[Outcome]:
    """All steps within `budget` seconds; the report is rewritten after each, so that an interruption keeps it."""
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    planned = 0.0
    outcomes: list[Outcome] = []
    for number, step in enumerate(steps):
        missing = [name for name in step.needs if not any(o.name == name and o.status == "passed" for o in outcomes)]
        # By then it has to be over: all limits up to its own.
        planned += step.limit
        left = start + min(planned, budget) - time.monotonic()
        if missing:
            outcome = Outcome(step.name, "skipped", reason=f"without {', '.join(missing)}")
        elif step.lacks:
            outcome = Outcome(step.name, "skipped", reason=step.lacks)
        elif left < 1:
            outcome = Outcome(step.name, "timed out", reason=f"no time left of {budget:.0f} seconds")
        else:
            if step.keep:
                step.keep.unlink(missing_ok=True)
            print(f"=== {step.name}", flush=True)
            outcome = run_step(step, left, out / f"{number}.log")
            if step.keep:
                outcome.result = kept(step.keep)
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


# ---- What this machine has ----


def find_program(name: str, variable: str = "") -> str | None:
    """Named by an environment variable, on PATH, beside this Python, or where the CUDA toolkit is put."""
    if variable and os.environ.get(variable):
        return os.environ[variable]
    toolkits = [os.environ[v] for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)] + ["/usr/local/cuda"]
    places = [shutil.which(name), str(Path(sys.executable).parent / name), *(f"{t}/bin/{name}" for t in toolkits)]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def without(*packages: str) -> str:
    """Which packages this Python lacks, as a reason; empty where it has all."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def lacks_for_build(on_gpu: bool) -> str:
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    missing = [name for name in ("cmake", "ninja") if find_program(name) is None]
    if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")):
        missing.append("a C++ compiler")
    if not headers.exists():
        missing.append(f"the headers of this Python ({headers})")
    if on_gpu and find_program("nvcc", "CUDACXX") is None:
        missing.append("nvcc (not on PATH, in CUDACXX or below CUDA_HOME)")
    return f"not installed: {', '.join(missing)}" if missing else ""


# ---- The steps ----

# Not hours of the same: the tests of corners, of every norm and of rewiring.
SUITE = ("oracle", "ops", "gradients", "set", "layer", "norms", "errors")
# compute-sanitizer's words about itself, not about the program.
REFUSAL = r"^=* ?Error: (?!process).*|^.*Device not supported.*|^.*Unable to find injection library.*"
FAULTS = 9  # its exit status where it found some


def sanitizer(tool: str, paths: dict[str, str], quick: bool) -> Step:
    program = find_program("compute-sanitizer")
    command = [program or "compute-sanitizer", "--tool", tool, "--error-exitcode", str(FAULTS), sys.executable,
               "tests/gpu/small_case.py", *(["--quick"] if quick else [])]  # fmt: skip
    # PyTorch's own caching of memory would hide what lies beyond a tensor.
    environment = paths | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    lacks = "" if program else "compute-sanitizer is not installed"
    return Step(f"compute-sanitizer {tool}", command, 45, environment, ("build",), lacks=lacks, refusal=REFUSAL,
                verdict=FAULTS)  # fmt: skip


def the_steps(device: str, out: Path, architecture: str, quick: bool = False) -> list[Step]:
    python = sys.executable
    on_gpu = device == "cuda"
    folders = [str(out / "package"), str(ROOT / "tests" / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    paths = {"PYTHONPATH": os.pathsep.join(folders)}
    options = [f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"] if on_gpu else []
    build = [python, "tests/build_package.py", str(out), f"-DDENDNORM_CUDA={'ON' if on_gpu else 'OFF'}", *options]
    compiler = {"CUDACXX": nvcc} if on_gpu and (nvcc := find_program("nvcc", "CUDACXX")) else {}
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # Several processes share the GPU well enough.
    workers = min(4, os.cpu_count() or 1)
    parallel = ["-n", str(workers), "--dist", "worksteal"] if workers > 1 and not without("xdist") else []
    chosen = ["-m", "not slow"] if quick else []
    suite = [f"tests/python/test_{name}.py" for name in (("errors",) if quick else SUITE)]
    bench = [python, "-m", "dendnorm", "bench", "--device", device, "--out", str(out / "bench")]
    bench += ["--no-sweeps", "--shape", "64,48,8,0.2", "--rounds", "2"] if quick else []
    train = [python, "-m", "dendnorm", "train", "--device", device, "--out", str(out / "train"), "--trials", "1"]
    train += ["--epochs", "1" if quick else "3"]
    built = ("build",)
    steps = [
        Step("build", build, 180, compiler, lacks=lacks_for_build(on_gpu)),
        Step("tests of the device", [*pytest, *chosen, "tests/gpu"], 60, paths, built, lacks=without("pytest")),
        Step("benchmark", bench, 90, paths, built, keep=out / "bench" / "bench.json"),
        sanitizer("memcheck", paths, quick),
        sanitizer("racecheck", paths, quick),
        Step("the suite on the device", [*pytest, *parallel, *suite], 80, paths | {"DENDNORM_TEST_DEVICE": device},
             built, lacks=without("pytest")),
        Step("training", train, 30, paths, built, keep=out / "train" / "results.json",
             lacks=without("tqdm", "matplotlib", "sklearn")),
    ]  # fmt: skip
    return steps


def refuse(reason: str) -> int:
    print(f"gpu-check: {reason}", file=sys.stderr)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a little of every step")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all steps together")
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
    out = given.out.resolve()
    steps = the_steps(given.device, out, architecture, given.quick)
    scale = given.budget / BUDGET
    steps = [replace(step, limit=step.limit * scale) for step in steps]
    outcomes = run_steps(steps, out, given.budget, facts)
    bad = [outcome.name for outcome in outcomes if outcome.status in ("failed", "timed out")]
    left_out = [f"{outcome.name} ({outcome.reason})" for outcome in outcomes if outcome.status == "skipped"]
    print(f"Written to {given.out}: gpu-check.json and gpu-check.txt")
    print(f"Not passed: {', '.join(bad)}." if bad else "Everything that ran passed.")
    if left_out:
        print(f"Not run: {', '.join(left_out)}.")
    return 1 if bad or not any(outcome.status == "passed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
