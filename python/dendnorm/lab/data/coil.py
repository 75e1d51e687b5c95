"""COIL-100: photographs of 100 objects from 72 angles, in grey and 32 x 32 pixels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import BYTE_SCALE, DataFileError, DataSet
from .images import read_image

__all__ = ["EXPECTED", "SOURCE", "is_here", "load"]

SOURCE = "https://www.cs.columbia.edu/CAVE/software/softlib/coil-100.php"
EXPECTED = f"files obj<1..100>__<angle>.png (the data set is at {SOURCE})"
SIDE = 32  # pixels a side: 1,024 inputs
TEST = 1436 / 7200  # the share that Pieterse and Mocanu (2019) held out


def is_here(folder: Path) -> bool:
    return bool(_files(folder))


def load(folder: Path) -> DataSet:
    """A random fifth of all views is held out, the same at every call."""
    files = _files(folder)
    images = np.stack([read_image(path, _grey) for _, _, path in files])
    labels = np.asarray([label for label, _, _ in files])
    names = sorted(set(labels.tolist()))
    if names != list(range(1, len(names) + 1)) or len(names) < 2:
        raise DataFileError(
            f"{folder}: expected objects 1, 2, ... without gaps, got {len(names)}, the last {names[-1]}"
        )
    order = np.random.RandomState(0).permutation(len(labels))
    held = round(TEST * len(labels))
    if held == 0:
        raise DataFileError(f"{folder}: expected enough images to hold a fifth out, got {len(labels)}")
    splits = ((images[part], labels[part] - 1) for part in (order[:-held], order[-held:]))
    return DataSet.of_arrays("coil100", *splits, BYTE_SCALE, tuple(map(str, names)), (1, SIDE, SIDE))


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """Object (from 1), angle and path of every image of the published layout, in that order."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if named := re.fullmatch(r"obj(\d+)__(\d+)\.png", path.name):
            found.append((int(named[1]), int(named[2]), path))
    return sorted(found)


def _grey(image: Any) -> Any:
    from PIL.Image import Resampling

    return image.convert("L").resize((SIDE, SIDE), Resampling.BOX)
