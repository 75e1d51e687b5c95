"""What this installation is: versions, how it was built, instruction sets, devices."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
import torch

from . import _ops, _version

__all__ = ["collect", "report"]


def collect() -> dict[str, Any]:
    """Facts for a bug report: plain strings, numbers, lists and dicts, fit for JSON.

    Returns:
        versions: of dendnorm, torch, numpy and python.
        platform: system, machine and number of processors.
        build: what the compiled module says about itself.
        cpu: the instruction set that torch uses, and the number of threads.
        devices: each that the ops run on and each GPU that is there, with whether this build has kernels for it.
    """
    cuda = torch.device("cuda")
    kernels = _ops.has_kernel("sparse_linear", cuda)
    devices = [{"name": "cpu", "description": platform.processor() or platform.machine(), "kernels": True}]
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
            "dendnorm": _version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "platform": {"system": platform.platform(), "machine": platform.machine(), "processors": os.cpu_count()},
        "build": {**_ops.capability(), "cuda kernels": kernels, "torch cuda": torch.version.cuda},
        "cpu": {"torch instruction set": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()},
        "devices": devices,
    }


def _lines(value: Any, indent: int) -> list[str]:
    pad = "  " * indent
    if isinstance(value, dict) and set(value) == {"name", "description", "kernels"}:
        note = "" if value["kernels"] else " (this build has no kernels for it)"
        return [f"{pad}{value['name']}: {value['description']}{note}"]
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return [line for entry in value for line in _lines(entry, indent)]
    lines = []
    for key, entry in value.items():
        if isinstance(entry, dict) or (isinstance(entry, list) and any(isinstance(e, dict) for e in entry)):
            lines += [f"{pad}{key}", *_lines(entry, indent + 1)]
        else:
            shown = ", ".join(map(str, entry)) if isinstance(entry, (list, tuple)) else entry
            shown = (
                {True: "yes", False: "no", None: "none"}.get(shown, shown)
                if not isinstance(shown, int) or isinstance(shown, bool)
                else shown
            )
            lines.append(f"{pad}{key}: {shown}")
    return lines


def report() -> str:
    """``collect()`` as text, one fact a line."""
    return "\n".join(_lines(collect(), 0))
