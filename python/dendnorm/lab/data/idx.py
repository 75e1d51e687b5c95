"""IDX files: MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from .dataset import BYTE_SCALE, DIGITS, DataFileError, DataSet, check_labels

__all__ = ["EXPECTED", "is_here", "load", "read_idx"]

EXPECTED = "train-images-idx3-ubyte or train-images-idx3-ubyte.gz"


def is_here(folder: Path) -> bool:
    return _find(folder, "train-images") is not None


def load(name: str, folder: Path) -> DataSet:
    train, test = _load_split(name, folder, "train"), _load_split(name, folder, "t10k")
    shape, test_shape = train[0].shape[1:], test[0].shape[1:]
    if shape != test_shape:
        raise DataFileError(f"{folder}: expected test images of {shape} pixels, got {test_shape}")
    return DataSet.of_arrays(name, train, test, BYTE_SCALE, DIGITS, (1, *shape))


def read_idx(path: str | Path, ndim: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not (told by its first bytes).

    Args:
        path: the file.
        ndim: dimensions expected: 3 for images (magic number 2051), 1 for labels (magic number 2049).

    Returns:
        uint8 array of `ndim` dimensions.

    Raises:
        DataFileError: wrong magic number, or fewer or more bytes than the header says, or broken compression.
    """
    path = Path(path)
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataFileError(
                f"{path}: expected a whole gzip file, got a truncated or damaged one ({error})"
            ) from None
    header = 4 + 4 * ndim
    if len(content) < header:
        raise DataFileError(f"{path}: expected an IDX header of {header} bytes, got a file of {len(content)} bytes")
    magic = int.from_bytes(content[:4], "big")
    if magic != 0x0800 + ndim:
        kind = "images" if ndim == 3 else "labels"
        raise DataFileError(f"{path}: expected magic number {0x0800 + ndim} (IDX {kind}), got {magic}")
    shape = tuple(int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, ndim + 1))
    size = math.prod(shape)  # Python's integers: a hostile header must not overflow
    if len(content) - header != size:
        state = "truncated" if len(content) - header < size else "too long"
        raise DataFileError(
            f"{path}: expected {size} bytes after the header for shape {shape}, got {len(content) - header} ({state})"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, stem: str) -> Path | None:
    """The file of `stem` ("train-images"), with the separators and suffixes that are in circulation."""
    kind = "idx3" if stem.endswith("images") else "idx1"
    names = (f"{stem}{separator}{kind}-ubyte{suffix}" for separator in "-." for suffix in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _load_split(name: str, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for stem, ndim in ((f"{split}-images", 3), (f"{split}-labels", 1)):
        path = _find(folder, stem)
        if path is None:
            raise FileNotFoundError(f"{name}: expected {stem}-idx{ndim}-ubyte or {stem}-idx{ndim}-ubyte.gz in {folder}")
        arrays.append(read_idx(path, ndim))
    images, labels = arrays
    if len(images) == 0:
        raise DataFileError(f"{folder}: {split} must hold at least one image, got none")
    if len(images) != len(labels):
        raise DataFileError(f"{folder}: expected as many {split} labels as images, {len(images)}, got {len(labels)}")
    check_labels(folder / f"{split}-labels", labels)
    return images, labels
