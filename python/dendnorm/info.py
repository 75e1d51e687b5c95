"""What this installation is: versions, how it was built, instruction sets, devices."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import __version__, _native
from .ops import library as _ops

__all__ = ["collect", "processor", "report"]


def processor() -> str:
    """The processor's name as the system gives it, or else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def collect() -> dict[str, Any]:
    """Facts for a bug report: plain strings, numbers, lists and dicts, fit for JSON.

    Returns:
        versions: of dendnorm, torch, numpy and python.
        platform: system, machine and number of processors.
        library: the folder of the compiled library, and why it was chosen among those of the package.
        build: what the compiled module says about itself.
        cpu: the instruction sets that the kernels and torch use, and the number of threads.
        devices: each that the ops run on and each GPU that is there, with whether this build has kernels for it.
    """
    cuda = torch.device("cuda")
    chosen = _native.library()
    kernels = _ops.has_kernel("sparse_linear", cuda)
    devices = [{"name": "cpu", "description": processor(), "kernels": True}]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices.append(
                {
                    "name": f"cuda:{index}",
                    "description": f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB,"
                    f" compute capability {properties.major}.{properties.minor}",
                    "kernels": kernels,
                }
            )
    return {
        "versions": {
            "dendnorm": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "platform": {"system": platform.platform(), "machine": platform.machine(), "processors": os.cpu_count()},
        "library": {"folder": str(chosen.folder), "chosen": chosen.reason},
        "build": {**_ops.build_info(), "cuda kernels": kernels, "torch's cuda": torch.version.cuda},
        "cpu": {
            "instruction set": _ops.cpu_capability(),
            "torch's instruction set": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "devices": devices,
    }


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _lines(facts: dict[str, Any], indent: int) -> list[str]:
    lines = []
    for key, value in facts.items():
        pad = "  " * indent
        if isinstance(value, dict):
            lines += [f"{pad}{key}", *_lines(value, indent + 1)]
        else:
            lines.append(f"{pad}{key}: {_shown(value)}")
    return lines


def report() -> str:
    """``collect()`` as text, one fact a line."""
    facts = collect()
    facts["devices"] = {
        device["name"]: device["description"] + ("" if device["kernels"] else " (this build has no kernels for it)")
        for device in facts["devices"]
    }
    return "\n".join(_lines(facts, 0))
