"""Which of the compiled libraries in the package is for the installed PyTorch.

What is compiled against PyTorch's C++ interface runs with one release of it. So the package keeps a folder for each
release that it was built for, ``lib/torch2.13``, with ``_C`` and the library that it loads; ``lib/torch2.13-cuda13``
holds the same with kernels for GPUs, for a PyTorch with that CUDA. A build from source has the folder of the PyTorch
that it was built with, a wheel one for each release that it supports.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

__all__ = ["Library", "choose", "library", "load"]

LIBRARIES = Path(__file__).parent / "lib"
BUILD = "`pip install --no-build-isolation .` in a checkout of dendnorm"


@dataclass(frozen=True)
class Library:
    """A folder of compiled libraries, and why it was chosen."""

    folder: Path
    reason: str


_chosen: Library | None = None


def _releases(folder: Path) -> list[str]:
    """Those of PyTorch that there are libraries for, the oldest first."""
    found = {match[1] for path in folder.glob("torch*") if (match := re.match(r"torch(\d+\.\d+)(-|$)", path.name))}
    return sorted(found, key=lambda release: tuple(map(int, release.split("."))))


def choose(folder: Path, torch_version: str, cuda: str | None) -> Library:
    """The library for a PyTorch of this version, with or without this CUDA.

    Args:
        folder: that holds the libraries' folders.
        torch_version: as ``torch.__version__``.
        cuda: as ``torch.version.cuda``; kernels for GPUs are taken where they are of the same major release.

    Raises:
        ImportError: none is for it.
    """
    release = ".".join(torch_version.split("+")[0].split(".")[:2])
    plain = folder / f"torch{release}"
    if cuda is not None:
        with_cuda = folder / f"torch{release}-cuda{cuda.partition('.')[0]}"
        if with_cuda.is_dir():
            return Library(with_cuda, f"for PyTorch {release} with CUDA {cuda.partition('.')[0]}")
    if plain.is_dir():
        reason = f"for PyTorch {release}"
        if cuda is not None:
            reason += f", without kernels for GPUs: there are none for CUDA {cuda.partition('.')[0]}"
        return Library(plain, reason)
    releases = _releases(folder)
    if release in releases:
        raise ImportError(
            f"dendnorm: its compiled library is for a PyTorch {release} with another CUDA than {cuda or 'none'}, which"
            f" the installed one ({torch_version}) has; build it with {BUILD}."
        )
    if releases:
        *others, last = releases
        known = f"{', '.join(others)} and {last}" if others else last
        raise ImportError(
            f"dendnorm: its compiled libraries are for PyTorch {known}, and the installed one is {torch_version};"
            f" install one of these (`pip install 'torch=={last}.*'`), or build dendnorm for yours with {BUILD}."
        )
    raise ImportError(f"dendnorm: no compiled library is in {folder}; build it with {BUILD}.")


def load() -> ModuleType:
    """The compiled module ``dendnorm._C``, loaded once.

    Raises:
        ImportError: there is none for this PyTorch or this Python, or it cannot be loaded; what to do about it.
    """
    global _chosen
    name = f"{__package__}._C"
    if name in sys.modules:
        return sys.modules[name]
    chosen = choose(LIBRARIES, torch.__version__, torch.version.cuda)
    files = [chosen.folder / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    path = next((file for file in files if file.exists()), None)
    if path is None:
        there = ", ".join(sorted(file.name for file in chosen.folder.glob("_C*"))) or "none"
        raise ImportError(
            f"dendnorm: {chosen.folder} has no module for {sys.implementation.cache_tag} (it has {there}); install the"
            f" wheel of this Python, or build dendnorm with {BUILD}."
        )
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise ImportError(
            f"dendnorm: {path} could not be loaded with PyTorch {torch.__version__} ({error}); build it anew with"
            f" {BUILD}."
        ) from error
    _chosen = chosen
    sys.modules[name] = module
    vars(sys.modules[__package__])["_C"] = module
    return module


def library() -> Library:
    """The one that was loaded."""
    assert _chosen is not None
    return _chosen


load()
