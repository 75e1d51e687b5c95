"""What every format is read into."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

__all__ = ["BYTE_SCALE", "DIGITS", "DataFileError", "DataSet", "check_labels", "hold_out"]

BYTE_SCALE = 1 / 256
DIGITS = tuple("0123456789")


class DataFileError(ValueError):
    """A data file that is not what its name says: the message has the file, what was expected and what came."""


@dataclass(frozen=True)
class DataSet:
    """Images as rows of bytes. ``inputs.float() * scale`` lies in [0, 1).

    Bytes and not floats: CIFAR-10 takes 180 MB so, and training turns one piece at a time into floats.

    Attributes:
        train_inputs, test_inputs: (examples, features), uint8.
        train_targets, test_targets: (examples,), int64, in [0, len(classes)).
        scale: what a byte is multiplied with.
        image_shape: (channels, height, width), with features as their product.
    """

    name: str
    train_inputs: torch.Tensor
    train_targets: torch.Tensor
    test_inputs: torch.Tensor
    test_targets: torch.Tensor
    scale: float
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]

    @classmethod
    def of_arrays(
        cls,
        name: str,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        scale: float,
        classes: tuple[str, ...],
        image_shape: tuple[int, int, int],
    ) -> DataSet:
        """From (images, labels): uint8 of any shape that begins with the examples, and labels of any integer type."""

        def tensors(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            # Copies: a file's bytes come read-only, and a part of an array would keep the whole one.
            rows = np.array(images, np.uint8).reshape(len(images), -1)
            return torch.from_numpy(rows), torch.from_numpy(np.array(labels, np.int64))

        return cls(name, *tensors(*train), *tensors(*test), scale, classes, image_shape)

    @property
    def features(self) -> int:
        return self.train_inputs.shape[1]


def hold_out(data: DataSet, examples: int) -> DataSet:
    """Training examples drawn at random, the same on every call, take the place of the test examples.

    At random, because files may be sorted by class. They are trained on no more; the others keep their order.

    Raises:
        ValueError: not fewer than there are.
    """
    count = len(data.train_targets)
    if not 0 < examples < count:
        raise ValueError(f"validation must be in [1, {count - 1}] for {data.name}, got {examples}")
    held = torch.zeros(count, dtype=torch.bool)
    held[torch.randperm(count, generator=torch.Generator().manual_seed(0))[:examples]] = True
    return replace(data, train_inputs=data.train_inputs[~held], train_targets=data.train_targets[~held],
                   test_inputs=data.train_inputs[held], test_targets=data.train_targets[held])  # fmt: skip


def check_labels(path: Path, labels: np.ndarray) -> None:
    """Refuse labels beyond ten classes.

    Raises:
        DataFileError: with the first wrong one and its position.
    """
    if labels.max() > 9:
        position = int(np.argmax(labels > 9))
        raise DataFileError(f"{path}: labels must be in [0, 10), got {labels[position]} at position {position}")
