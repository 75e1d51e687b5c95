"""Data sets for ``dendnorm train``: digits, MNIST, Fashion-MNIST and CIFAR-10, read from files that the user has.

Nothing is downloaded and nothing is unpickled: a data file can hold wrong numbers, never code that runs.
"""

from __future__ import annotations

import functools
import gzip
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .._extras import require

__all__ = ["NAMES", "DataFileError", "DataSet", "guess", "load", "read_idx"]

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "coil100")
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_RECORDS = 10_000  # in each of the six published files
CIFAR_RECORD_BYTES = 1 + 3 * 32 * 32
DIGITS_TEST = 360
COIL_SOURCE = "https://www.cs.columbia.edu/CAVE/software/softlib/coil-100.php"
COIL_SIDE = 32  # pixels a side, in grey: 1,024 inputs
COIL_TEST = 1436 / 7200  # the share that Pieterse and Mocanu (2019) held out
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

# The folder names that the data sets' own archives and torchvision use.
FOLDERS = {
    "mnist": ("mnist", "MNIST", "MNIST/raw"),
    "fashion-mnist": ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
    "cifar10": ("cifar-10-batches-bin", "cifar10", "cifar-10", "cifar10/cifar-10-batches-bin",
                "cifar-10/cifar-10-batches-bin"),
    "coil100": ("coil-100", "coil100", "COIL-100"),
}  # fmt: skip


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

    @property
    def features(self) -> int:
        return self.train_inputs.shape[1]


def load(name: str = "digits", root: str | Path | None = None) -> DataSet:
    """Read a data set.

    Args:
        name: one of ``NAMES``.
        root: the folder of the files, or the folder that holds it (``root/fashion-mnist``). Digits need none.

    Raises:
        ValueError: unknown name, or no root where one is needed.
        FileNotFoundError: the folder or a file is missing; says what was looked for.
        DataFileError: a file is damaged or is not what its name says.
    """
    folder = locate(name, root)
    if folder is None:
        return _load_digits()
    return {"cifar10": _load_cifar, "coil100": _load_coil}.get(name, functools.partial(_load_idx_set, name))(folder)


def locate(name: str, root: str | Path | None) -> Path | None:
    """The folder that has the files of a data set: root itself or one in it; None for digits, which need none.

    Raises:
        ValueError: unknown name, or no root where one is needed.
        FileNotFoundError: there is none; says what was looked for.
    """
    if name not in NAMES:
        raise ValueError(f"data must be one of {', '.join(NAMES)}, got {name!r}")
    if name == "digits":
        return None
    if root is None:
        raise ValueError(f"data {name!r} needs root, the folder that holds its files (--root DIR), got none")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder, got {str(root)!r}, which is not there")
    return {"cifar10": _find_cifar, "coil100": _find_coil}.get(name, functools.partial(_find_idx_set, name))(root)


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


def guess(root: str | Path) -> str:
    """Tell which data set a folder holds, from the names in it; Fashion-MNIST goes before MNIST where both are there.

    Raises:
        FileNotFoundError: none of them is there.
    """
    root = Path(root).expanduser()
    if root.is_dir():
        if _find(root, "train-images"):
            return "fashion-mnist" if "fashion" in str(root.resolve()).lower() else "mnist"
        for name in ("fashion-mnist", "mnist"):
            if any(_find(root / folder, "train-images") for folder in FOLDERS[name]):
                return name
        if any(_is_cifar(root / folder) for folder in (".", *FOLDERS["cifar10"])):
            return "cifar10"
    raise FileNotFoundError(f"root must hold MNIST, Fashion-MNIST or CIFAR-10; none was found in {str(root)!r}")


def _load_digits() -> DataSet:
    digits = require("sklearn.datasets", "train").load_digits()
    # RandomState's stream is frozen by numpy, so the split stays the same for all versions.
    order = np.random.RandomState(0).permutation(len(digits.target))
    inputs = torch.from_numpy(digits.data[order].astype(np.uint8))
    targets = torch.from_numpy(digits.target[order].astype(np.int64))
    return DataSet(
        "digits",
        inputs[:-DIGITS_TEST].clone(),
        targets[:-DIGITS_TEST].clone(),
        inputs[-DIGITS_TEST:].clone(),
        targets[-DIGITS_TEST:].clone(),
        scale=1 / 17,  # pixels are 0..16
        classes=tuple("0123456789"),
        image_shape=(1, 8, 8),
    )


# ---- IDX: MNIST and Fashion-MNIST


def _find(folder: Path, stem: str) -> Path | None:
    """The file of `stem` ("train-images"), with the separators and suffixes that are in circulation."""
    kind = "idx3" if stem.endswith("images") else "idx1"
    for separator in ("-", "."):
        for suffix in ("", ".gz"):
            path = folder / f"{stem}{separator}{kind}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


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
    size = 1
    for extent in shape:  # Python's integers: a hostile header must not overflow
        size *= extent
    if len(content) - header != size:
        state = "truncated" if len(content) - header < size else "too long"
        raise DataFileError(
            f"{path}: expected {size} bytes after the header for shape {shape}, got {len(content) - header} ({state})"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find_idx_set(name: str, root: Path) -> Path:
    candidates = [root, *(root / folder for folder in FOLDERS[name])]
    # A sub-folder of the right name goes before files that lie in root itself.
    folder = next((f for f in (*candidates[1:], root) if _find(f, "train-images")), None)
    if folder is None:
        looked = ", ".join(str(candidate) for candidate in candidates)
        raise FileNotFoundError(f"{name}: expected train-images-idx3-ubyte or train-images-idx3-ubyte.gz in {looked}")
    return folder


def _load_idx_set(name: str, folder: Path) -> DataSet:
    parts = {split: _load_idx_split(name, folder, split) for split in ("train", "t10k")}
    (train, train_targets), (test, test_targets) = parts["train"], parts["t10k"]
    if train.shape[1:] != test.shape[1:]:
        raise DataFileError(f"{folder}: expected test images of {train.shape[1:]} pixels, got {test.shape[1:]}")
    return DataSet(
        name,
        torch.from_numpy(train.reshape(len(train), -1).copy()),
        torch.from_numpy(train_targets.astype(np.int64)),
        torch.from_numpy(test.reshape(len(test), -1).copy()),
        torch.from_numpy(test_targets.astype(np.int64)),
        scale=1 / 256,
        classes=tuple("0123456789"),
        image_shape=(1, *train.shape[1:]),
    )


def _load_idx_split(name: str, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
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
    _check_labels(folder / f"{split}-labels", labels)
    return images, labels


def _check_labels(path: Path, labels: np.ndarray) -> None:
    if labels.max() > 9:
        position = int(np.argmax(labels > 9))
        raise DataFileError(f"{path}: labels must be in [0, 10), got {labels[position]} at position {position}")


# ---- CIFAR-10


def _is_cifar(folder: Path) -> bool:
    return (folder / "data_batch_1.bin").is_file() or ((folder / "train").is_dir() and (folder / "test").is_dir())


def _find_cifar(root: Path) -> Path:
    folder = next((f for f in (root, *(root / name for name in FOLDERS["cifar10"])) if _is_cifar(f)), None)
    if folder is None:
        message = (
            f"cifar10: expected cifar-10-batches-bin/data_batch_1.bin (the binary version), or train/<class>/*.jpg|png"
            f" and test/<class>/*.jpg|png, in {root}"
        )
        for pickled in (root, root / "cifar-10-batches-py"):
            if (pickled / "data_batch_1").is_file():
                message += "; the Python version that is there is pickled, and unpickling can run any code: not read"
                break
        raise FileNotFoundError(message)
    return folder


def _load_cifar(folder: Path) -> DataSet:
    if (folder / "data_batch_1.bin").is_file():
        batches = [_read_cifar_batch(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
        train = np.concatenate(batches)
        test = _read_cifar_batch(folder / "test_batch.bin")
        return _cifar_set(train[:, 1:], train[:, 0], test[:, 1:], test[:, 0], CIFAR_CLASSES, (3, 32, 32))
    classes = _class_folders(folder / "train")
    if (test_classes := _class_folders(folder / "test")) != classes:
        raise DataFileError(f"{folder / 'test'}: expected the class folders of train, {classes}, got {test_classes}")
    train, train_targets, shape = _read_image_folder(folder / "train", classes, None)
    test, test_targets, _ = _read_image_folder(folder / "test", classes, shape)
    return _cifar_set(train, train_targets, test, test_targets, classes, shape)


def _cifar_set(
    train: np.ndarray,
    train_targets: np.ndarray,
    test: np.ndarray,
    test_targets: np.ndarray,
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
) -> DataSet:
    return DataSet(
        "cifar10",
        torch.from_numpy(np.ascontiguousarray(train)),
        torch.from_numpy(train_targets.astype(np.int64)),
        torch.from_numpy(np.ascontiguousarray(test)),
        torch.from_numpy(test_targets.astype(np.int64)),
        scale=1 / 256,
        classes=classes,
        image_shape=shape,
    )


def _read_cifar_batch(path: Path) -> np.ndarray:
    """Records of one label byte and 3,072 pixel bytes (red, green and blue planes): (records, 3073), uint8."""
    if not path.is_file():
        raise FileNotFoundError(f"cifar10: expected {path.name} in {path.parent}")
    expected, size = CIFAR_RECORDS * CIFAR_RECORD_BYTES, path.stat().st_size
    if size != expected:
        state = "truncated" if size < expected else "too long"
        raise DataFileError(f"{path}: expected {expected} bytes ({CIFAR_RECORDS} records), got {size} ({state})")
    records = np.fromfile(path, np.uint8).reshape(-1, CIFAR_RECORD_BYTES)
    _check_labels(path, records[:, 0])
    return records


def _class_folders(folder: Path) -> tuple[str, ...]:
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise DataFileError(f"{folder}: expected one folder for each class, got none")
    return classes


def _read_image_folder(
    folder: Path, classes: tuple[str, ...], shape: tuple[int, int, int] | None
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """Images as (examples, 3 height width), uint8, in planes like CIFAR-10's own files; labels; (3, height, width)."""
    image_module = require("PIL.Image", "train")
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise DataFileError(f"{folder / name}: expected images (*.jpg, *.png), got none")
        for path in paths:
            try:
                with image_module.open(path) as image:
                    pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            except (OSError, SyntaxError, ValueError) as error:
                raise DataFileError(f"{path}: expected an image, got a damaged file ({error})") from None
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise DataFileError(
                    f"{path}: expected {shape[1]} x {shape[2]} pixels like the others, got"
                    f" {pixels.shape[1]} x {pixels.shape[2]}"
                )
            images.append(pixels.reshape(-1))
            labels.append(label)
    return np.stack(images), np.asarray(labels), shape


# ---- COIL-100


def _coil_files(folder: Path) -> list[tuple[int, int, Path]]:
    """Object (from 1), angle and path of every image of the published layout, in that order."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if named := re.fullmatch(r"obj(\d+)__(\d+)\.png", path.name):
            found.append((int(named[1]), int(named[2]), path))
    return sorted(found)


def _find_coil(root: Path) -> Path:
    folder = next((f for f in (root, *(root / name for name in FOLDERS["coil100"])) if _coil_files(f)), None)
    if folder is None:
        raise FileNotFoundError(
            f"coil100: expected files obj<1..100>__<angle>.png in {root} or {root / 'coil-100'};"
            f" the data set is at {COIL_SOURCE}"
        )
    return folder


def _load_coil(folder: Path) -> DataSet:
    """Grey images of 32 x 32 pixels, a random fifth of all views held out (the same at every call)."""
    image_module = require("PIL.Image", "train")
    images, labels = [], []
    for label, _, path in _coil_files(folder):
        try:
            with image_module.open(path) as image:
                images.append(
                    np.asarray(image.convert("L").resize((COIL_SIDE, COIL_SIDE), image_module.Resampling.BOX))
                )
        except (OSError, SyntaxError, ValueError) as error:
            raise DataFileError(f"{path}: expected an image, got a damaged file ({error})") from None
        labels.append(label)
    names = sorted(set(labels))
    if names != list(range(1, len(names) + 1)) or len(names) < 2:
        raise DataFileError(
            f"{folder}: expected objects 1, 2, ... without gaps, got {len(names)}, the last {names[-1]}"
        )
    order = np.random.RandomState(0).permutation(len(labels))
    held = round(COIL_TEST * len(labels))
    if held == 0:
        raise DataFileError(f"{folder}: expected enough images to hold a fifth out, got {len(labels)}")
    inputs = torch.from_numpy(np.stack(images).reshape(len(labels), -1)[order])
    targets = torch.from_numpy(np.asarray(labels, np.int64)[order] - 1)
    return DataSet("coil100", inputs[:-held].clone(), targets[:-held].clone(), inputs[-held:].clone(),
                   targets[-held:].clone(), scale=1 / 256, classes=tuple(map(str, names)),
                   image_shape=(1, COIL_SIDE, COIL_SIDE))  # fmt: skip
