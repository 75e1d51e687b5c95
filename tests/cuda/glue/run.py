"""Runs a command with CUDA devices that the host stands in for, under AddressSanitizer:

    python tests/cuda/glue/run.py build/release/on_host COMMAND [ARGUMENT ...]

The folder holds the library that a build with tests makes (CMakeLists.txt).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def environment(folder: Path) -> dict[str, str]:
    """What a process needs to begin with the devices of `folder`'s library."""
    # The runtime of the sanitizer comes before everything else.
    preload = (folder.parent / "on_host" / "preload.txt").read_text(encoding="utf-8").split()
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "DENDNORM_ON_HOST": str(folder.resolve() / "libdendnorm.so"),
        "PYTHONPATH": os.pathsep.join(paths),
        "LD_PRELOAD": " ".join(preload),
        # PyTorch is not compiled with it, so what its containers hold is unknown; and Python's leaks are its own.
        "ASAN_OPTIONS": "detect_leaks=0:detect_container_overflow=0:alloc_dealloc_mismatch=0",
    }


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    os.execvpe(sys.argv[2], sys.argv[2:], os.environ | environment(Path(sys.argv[1])))
