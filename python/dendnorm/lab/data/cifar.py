"""CIFAR-10: the published binary files, or folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import images
from .dataset import BYTE_SCALE, DataFileError, DataSet, check_labels

__all__ = ["expected", "is_here", "load"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORDS = 10_000  # in each of the six published files
RECORD_BYTES = 1 + 3 * 32 * 32


def is_here(folder: Path) -> bool:
    return _has_batches(folder) or images.is_here(folder)


def expected(root: Path) -> str:
    """What was looked for, and why the Python version is not read where that is what there is."""
    message = (
        "cifar-10-batches-bin/data_batch_1.bin (the binary version), or train/<class>/*.jpg|png and"
        " test/<class>/*.jpg|png,"
    )
    if any((folder / "data_batch_1").is_file() for folder in (root, root / "cifar-10-batches-py")):
        message += " not the Python version that is there: it is pickled, and unpickling can run any code;"
    return message


def load(folder: Path) -> DataSet:
    if not _has_batches(folder):
        return images.load("cifar10", folder)
    train = np.concatenate([_read_batch(folder / f"data_batch_{i}.bin") for i in range(1, 6)])
    test = _read_batch(folder / "test_batch.bin")
    splits = ((batch[:, 1:], batch[:, 0]) for batch in (train, test))
    return DataSet.of_arrays("cifar10", *splits, BYTE_SCALE, CLASSES, (3, 32, 32))


def _has_batches(folder: Path) -> bool:
    return (folder / "data_batch_1.bin").is_file()


def _read_batch(path: Path) -> np.ndarray:
    """Records of one label byte and 3,072 pixel bytes (red, green and blue planes): (records, 3073), uint8."""
    if not path.is_file():
        raise FileNotFoundError(f"cifar10: expected {path.name} in {path.parent}")
    wanted, size = RECORDS * RECORD_BYTES, path.stat().st_size
    if size != wanted:
        state = "truncated" if size < wanted else "too long"
        raise DataFileError(f"{path}: expected {wanted} bytes ({RECORDS} records), got {size} ({state})")
    records = np.fromfile(path, np.uint8).reshape(-1, RECORD_BYTES)
    check_labels(path, records[:, 0])
    return records
