"""Tries a wheel with several PyTorches: installs the same file for each, and runs the core of the suite.

    python tests/check_wheel.py WHEEL PYTHON [PYTHON ...]

Each PYTHON has a PyTorch, pip, pytest, hypothesis and expecttest, and no dendnorm. The wheel goes into a folder of its
own, and the tests see that alone: neither the checkout's package nor a compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = ("native", "ops", "layer", "norms", "set", "rules", "transforms", "checkpoint", "state", "densify")
FIRST_LINES = """
import torch, dendnorm
from dendnorm import SET, SparseLinear, _native
assert "site" in dendnorm.__file__, dendnorm.__file__
model = torch.nn.Sequential(SparseLinear(784, 100, density=0.1, norm="l0"), torch.nn.ReLU(), torch.nn.Linear(100, 10))
optimizer = torch.optim.AdamW(dendnorm.param_groups(model), lr=1e-3)
rewiring = SET(model, optimizer, zeta=0.3)
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(torch.randn(32, 784)), torch.randint(10, (32,)))
    optimizer.zero_grad(); loss.backward(); optimizer.step()
rewiring.step()
chosen = _native.library()
print(f"PyTorch {torch.__version__}: {chosen.folder.name}, {chosen.reason}; loss {loss.item():.3f}")
"""


def check(wheel: Path, python: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        start = time.perf_counter()
        pip = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--target",
            str(site),
        ]
        subprocess.run([*pip, str(wheel)], check=True)
        environment = os.environ | {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "CXX": "/bin/false"}
        subprocess.run([python, "-c", FIRST_LINES], check=True, env=environment, cwd=folder)
        print(f"installed, imported and trained in {time.perf_counter() - start:.1f} s", flush=True)
        environment["PYTHONPATH"] = os.pathsep.join([str(site), str(ROOT / "tests" / "python")])
        del environment["CXX"]  # torch.compile's tests may use one
        present = [ROOT / "tests" / "python" / f"test_{name}.py" for name in CORE]
        tests = [str(path) for path in present if path.exists()]
        pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]
        return subprocess.run(pytest, env=environment, cwd=ROOT).returncode == 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    good = [check(Path(sys.argv[1]).resolve(), os.path.abspath(python)) for python in sys.argv[2:]]
    raise SystemExit(0 if all(good) else 1)
