"""Where an experiment runs."""

from __future__ import annotations

import torch

from ..ops import library as _ops

__all__ = ["choose_device"]


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one and this build has kernels for it, else the CPU.

    Raises:
        ValueError: a device that is not there, or that there are no kernels for.
    """
    cuda = torch.cuda.is_available() and _ops.has_kernel("sparse_linear", torch.device("cuda"))
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:NUMBER, got {name!r}")
    if device.type == "cuda" and not cuda:
        raise ValueError(
            f"device {name!r} needs a GPU and a build with CUDA (`dendnorm info` tells), got neither or one"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be one of {torch.cuda.device_count()} GPUs, counted from 0, got {name!r}")
    return device
