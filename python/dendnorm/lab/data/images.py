"""Single image files, and folders of them with one folder for each class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..._extras import require
from .dataset import BYTE_SCALE, DataFileError, DataSet

__all__ = ["is_here", "load", "read_image"]

SUFFIXES = (".jpg", ".jpeg", ".png")


def is_here(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def load(name: str, folder: Path) -> DataSet:
    """train/<class>/*.jpg|png and test/<class>/*.jpg|png, all of one size."""
    classes = _classes(folder / "train")
    if (test_classes := _classes(folder / "test")) != classes:
        raise DataFileError(f"{folder / 'test'}: expected the class folders of train, {classes}, got {test_classes}")
    *train, shape = _read_folder(folder / "train", classes, None)
    *test, _ = _read_folder(folder / "test", classes, shape)
    return DataSet.of_arrays(name, tuple(train), tuple(test), BYTE_SCALE, classes, shape)


def read_image(path: Path, convert: Callable[[Any], Any]) -> np.ndarray:
    """The pixels of what `convert` makes of the opened image.

    Raises:
        DataFileError: it cannot be read.
    """
    try:
        with require("PIL.Image", "train").open(path) as image:
            return np.asarray(convert(image))
    except ImportError:
        raise
    except Exception as error:  # Pillow's readers raise what they like, its limit of pixels an error of its own
        raise DataFileError(f"{path}: expected an image, got a damaged file ({error})") from None


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise DataFileError(f"{folder}: expected one folder for each class, got none")
    return classes


def _read_folder(
    folder: Path, classes: tuple[str, ...], shape: tuple[int, int, int] | None
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """Images as (examples, 3 height width), uint8, in planes like CIFAR-10's own files; labels; (3, height, width)."""
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise DataFileError(f"{folder / name}: expected images (*.jpg, *.png), got none")
        for path in paths:
            pixels = read_image(path, lambda image: image.convert("RGB")).transpose(2, 0, 1)
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise DataFileError(
                    f"{path}: expected {shape[1]} x {shape[2]} pixels like the others, got"
                    f" {pixels.shape[1]} x {pixels.shape[2]}"
                )
            images.append(pixels.reshape(-1))
            labels.append(label)
    return np.stack(images), np.asarray(labels), shape
