"""Builds a source distribution without a network, with the running interpreter and its PyTorch, and tries the result.

    python tests/check_sdist.py SDIST [FOLDER]

It is unpacked in FOLDER, or in a temporary one; FOLDER/site then holds the installed package. CXX names the compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from check_wheel import FIRST_LINES

# An index that is asked nevertheless is an error.
OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_CONFIG_FILE": os.devnull,
    "http_proxy": "http://0.0.0.0:1",
    "https_proxy": "http://0.0.0.0:1",
}


def check(sdist: Path, folder: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = (path for path in folder.iterdir() if path.is_dir() and (path / "setup.py").exists())
    site = folder / "site"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")} | OFFLINE
    start = time.perf_counter()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-build-isolation"]
    subprocess.run([*pip, "--no-deps", "--target", str(site), str(source)], check=True, env=environment)
    print(f"built and installed in {time.perf_counter() - start:.0f} s", flush=True)
    environment["PYTHONPATH"] = str(site)
    subprocess.run([sys.executable, "-c", FIRST_LINES], check=True, env=environment, cwd=folder)
    said = subprocess.run(
        [sys.executable, "-m", "dendnorm", "info"],
        check=True,
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    print(said.stdout, flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    sdist = Path(sys.argv[1]).resolve()
    if len(sys.argv) == 3:
        check(sdist, Path(sys.argv[2]).resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            check(sdist, Path(folder))
