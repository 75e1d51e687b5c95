"""Every test of the project: C++ as built for use and under sanitizers, Python, and the CUDA build as far as it goes
without a GPU. Ends with one line of totals.

Each part runs even where another failed; the exit status is 0 only if nothing did.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from check_compilers import ARM, cross

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
PYTHON_ENV = {"TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor")}


def run(title: str, command: list[str], **environment: str) -> bool:
    print(f"\n=== {title}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment).returncode == 0


def ctest(title: str, build: Path, chosen: Sequence[str] = ()) -> tuple[bool, Path]:
    report = build / "ctest.xml"
    report.unlink(missing_ok=True)
    jobs = str(os.cpu_count() or 2)
    command = ["ctest", "--test-dir", str(build), "--output-on-failure", "--no-tests=error", "-j", jobs]
    command += ["--output-junit", str(report), "--progress", *chosen]
    return run(title, command), report


def counted(report: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests of a JUnit file; a missing one counts as one failure."""
    if not report.exists():
        return 0, 1, 0
    passed = failed = skipped = 0
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            failed += 1
        elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def build_and_test(
    title: str,
    source: Path,
    build: Path,
    options: list[str],
    target: str = "all",
    tests: str = ".",
    chosen: Sequence[str] = (),
) -> tuple[bool, Path]:
    """Configure, build and run C++ tests of a build of their own; those in a folder of it, as ctest is told."""
    report = build / tests / "ctest.xml"
    report.unlink(missing_ok=True)
    configure = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    compiled = ["cmake", "--build", str(build), "--target", target]
    if not (run(f"{title}: build", configure + options) and run("build", compiled)):
        return False, report
    return ctest(title, build / tests, chosen)


def aarch64(build: Path) -> tuple[bool, Path] | None:
    """What needs no PyTorch, compiled for aarch64 and emulated; None where compiler or emulator is missing."""
    title = "C++ for aarch64, emulated"
    compiler, (options, emulator) = shutil.which(ARM), cross()
    if compiler is None or not emulator:
        print(f"\n=== {title}: skipped, for there is no {'qemu-aarch64' if compiler else ARM}", flush=True)
        return None
    options += [f"-DCMAKE_CXX_COMPILER={compiler}", "-DDENDNORM_TORCH=OFF", "-DDENDNORM_BUILD_TESTS=ON"]
    # The portable kernels run here, too, and an emulator has no caches.
    chosen = ["-E", "TakesTilesThatNoCacheHolds|/default$"]
    return build_and_test(title, ROOT, build, options, target="dendnorm_tests", tests="tests/cpp", chosen=chosen)


# On the processor a device is slow: what the glue does, a few generated cases of each kind, and of tests that differ by
# the norm alone three.
GLUE = (
    "tests/cuda/glue/test_glue.py",
    "tests/cuda/glue/test_rehearsal.py",
    "tests/gpu",
    "-k",
    "not captured_graph or none or l0] or joint",
)
GLUE_SUITE = (
    *(f"tests/python/test_{name}.py" for name in ("oracle", "gradients", "rewire_faults", "errors")),
    "-k", "not deferring_changes_nothing and not missing_build and not (nan_stops_the_whole_step and not layers) "
          "and not (no_connection_at_all and dtype1) and not (batched_gradients and not l0]) "
          # They copy storages, of which a PyTorch without CUDA has none of the device's.
          "and not copies_of_a_rewirer and not wrong_keys_of_a_variant and not share_a_weight",
)  # fmt: skip
GLUE_TORCH = "2.13"  # whose inner parts tests/cuda/glue stands in for; others are tried


def cuda_glue(build: Path, reports: list[Path]) -> bool | None:
    """What hands tensors to the CUDA kernels, executed on devices that the processor stands in for, under
    AddressSanitizer; None where it cannot be built."""
    title, folder = "The CUDA glue on the processor", build / "on_host"
    if not (folder / "preload.txt").exists():
        print(f"\n=== {title}: skipped, for PyTorch is one with CUDA, or there is no AddressSanitizer", flush=True)
        return None
    targets = ("dendnorm_on_host", "dendnorm_on_host_planted")
    if not run(f"{title}: build", ["cmake", "--build", str(build), "--target", *targets]):
        version = importlib.metadata.version("torch")
        if version.startswith(f"{GLUE_TORCH}."):
            return False
        print(f"\n=== {title}: skipped, for it is made for PyTorch {GLUE_TORCH}, and this is {version}", flush=True)
        return None
    good = True
    for name, arguments, environment in (
        ("glue", GLUE, {}),
        ("glue-suite", GLUE_SUITE, {"DENDNORM_TEST_DEVICE": "cuda", "DENDNORM_TEST_EXAMPLES": "5"}),
    ):
        report = BUILD / f"pytest-{name}.xml"
        report.unlink(missing_ok=True)
        reports.append(report)
        command = [sys.executable, "tests/cuda/glue/run.py", str(folder), sys.executable, "-m", "pytest", "-q"]
        # What AddressSanitizer writes is not kept from whoever reads this.
        command += ["--capture=sys", "-m", "not slow", f"--junitxml={report}", *arguments]
        if importlib.util.find_spec("xdist"):
            command += ["-n", str(os.cpu_count() or 2), "--dist", "worksteal"]
            environment = environment | {"OMP_NUM_THREADS": "1"}
        good &= run(f"{title}: {name}", command, **PYTHON_ENV, **environment)
    return good


def cuda_build(report: Path) -> bool | None:
    """Compile, link and import the CUDA build and read its machine code; None where there is no CUDA compiler."""
    report.unlink(missing_ok=True)
    nvcc = os.environ.get("DENDNORM_NVCC") or shutil.which("nvcc")
    if not nvcc:
        print("\n=== The CUDA build: skipped, for there is no nvcc on PATH", flush=True)
        return None
    environment = Path(os.environ.get("DENDNORM_CUDA_ENV", ROOT / ".venv-cuda"))
    python = environment / "bin" / "python"
    if not (environment / ".ready").exists():
        print(
            f"\n=== The CUDA build: failed, for {environment} could not be made (see the start of `make test`)",
            flush=True,
        )
        return False
    folder = BUILD / "cuda"
    command = [str(python), "tests/build_package.py", str(folder), "-DDENDNORM_CUDA=ON"]
    if not run("The CUDA build", command, CUDACXX=nvcc):
        return False
    paths = os.pathsep.join(map(str, (folder / "package", ROOT / "tests" / "python")))
    pytest = [str(python), "-m", "pytest", "-q", "tests/cuda", "--ignore=tests/cuda/glue", f"--junitxml={report}"]
    return run("The CUDA build, imported and read", pytest, PYTHONPATH=paths)


def main() -> int:
    BUILD.mkdir(exist_ok=True)
    good, reports = [], []

    passed, report = ctest("C++", BUILD / "release")
    good.append(passed)
    reports.append(report)

    # Two builds: the memory of the processor's and of the device's kernels, and what runs unordered in the device's.
    sanitizers = ["-DDENDNORM_TORCH=OFF", "-DDENDNORM_SANITIZE=ON", "-DDENDNORM_BUILD_TESTS=ON"]
    for title, source, folder, options in (
        ("C++ under AddressSanitizer and UndefinedBehaviorSanitizer", ROOT, "sanitize", sanitizers),
        ("CUDA kernels under ThreadSanitizer", ROOT / "tests" / "cuda", "thread", ["-DDENDNORM_THREAD_SANITIZER=ON"]),
    ):
        passed, report = build_and_test(title, source, BUILD / folder, options)
        good.append(passed)
        reports.append(report)

    emulated = aarch64(BUILD / "aarch64")
    if emulated is not None:
        good.append(emulated[0])
        reports.append(emulated[1])

    for name in ("python", "gpu"):
        report = BUILD / f"pytest-{name}.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", f"tests/{name}", f"--junitxml={report}"]
        environment = os.environ | PYTHON_ENV
        if name == "python" and importlib.util.find_spec("xdist"):
            # Side by side, each with one thread; tests of threads set their number.
            command += ["-n", str(os.cpu_count() or 2), "--dist", "worksteal"]
            environment |= {"OMP_NUM_THREADS": "1"}
        # 5: no tests in the folder.
        print(f"\n=== {name}", flush=True)
        status = subprocess.run(command, cwd=ROOT, env=environment).returncode
        good.append(status in (0, 5))
        reports.append(report)

    # The products again as an older processor would run them.
    for capability in ("avx2", "default"):
        report = BUILD / f"pytest-{capability}.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "tests/python/test_oracle.py", f"--junitxml={report}"]
        environment = PYTHON_ENV | {"DENDNORM_CPU_CAPABILITY": capability}
        good.append(run(f"the oracle with DENDNORM_CPU_CAPABILITY={capability}", command, **environment))
        reports.append(report)

    executed = cuda_glue(BUILD / "release", reports)
    good.append(executed is not False)

    report = BUILD / "pytest-cuda.xml"
    compiled = cuda_build(report)
    good.append(compiled is not False)
    if compiled is not None:
        reports.append(report)

    totals = [sum(column) for column in zip(*map(counted, reports), strict=True)]
    totals[2] += (compiled is None) + (executed is None) + (emulated is None)
    machine_code = BUILD / "cuda" / "machine_code.txt"
    if compiled is not None and machine_code.exists():
        print(f"\nThe machine code of the CUDA kernels (cuda/README.md derives the limits)\n{machine_code.read_text()}")
    print(f"\n{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped")
    return 0 if all(good) and totals[1] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
