"""The data sets by name: where their files may lie and what reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import cifar, coil, digits, idx
from .dataset import DataSet

__all__ = ["NAMES", "guess", "load", "locate"]


@dataclass(frozen=True)
class Source:
    """Files of one data set.

    Attributes:
        title: as its authors call it.
        folders: names that its own archive and torchvision use.
        is_here: whether a folder holds it.
        load: reads it from that folder.
        expected: what was looked for, given the root.
        own_folder_first: a sub-folder of the right name goes before files that lie in root itself.
    """

    title: str
    folders: tuple[str, ...]
    is_here: Callable[[Path], bool]
    load: Callable[[Path], DataSet]
    expected: Callable[[Path], str]
    own_folder_first: bool = False

    def find(self, root: Path) -> Path | None:
        places = [root, *(root / name for name in self.folders)]
        if self.own_folder_first:
            places = [*places[1:], root]
        return next((place for place in places if self.is_here(place)), None)


def _idx(name: str, title: str, folders: tuple[str, ...]) -> Source:
    # The files of both sets have the same names.
    return Source(title, folders, idx.is_here, partial(idx.load, name), lambda root: idx.EXPECTED, True)


SOURCES = {
    "fashion-mnist": _idx("fashion-mnist", "Fashion-MNIST", ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw")),
    "mnist": _idx("mnist", "MNIST", ("mnist", "MNIST", "MNIST/raw")),
    "cifar10": Source(
        "CIFAR-10",
        ("cifar-10-batches-bin", "cifar10", "cifar-10", "cifar10/cifar-10-batches-bin",
         "cifar-10/cifar-10-batches-bin"),
        cifar.is_here,
        cifar.load,
        cifar.expected,
    ),
    "coil100": Source(
        "COIL-100", ("coil-100", "coil100", "COIL-100"), coil.is_here, coil.load, lambda root: coil.EXPECTED
    ),
}  # fmt: skip
NAMES = ("digits", *SOURCES)


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
    return digits.load() if folder is None else SOURCES[name].load(folder)


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
    root = _folder(root)
    source = SOURCES[name]
    found = source.find(root)
    if found is None:
        looked = ", ".join(source.folders)
        raise FileNotFoundError(f"{name}: expected {source.expected(root)} in {root} or its folders {looked}")
    return found


def guess(root: str | Path) -> str:
    """Tell which data set a folder holds, from the names in it; Fashion-MNIST goes before MNIST where both are there.

    Raises:
        FileNotFoundError: none of them is there.
    """
    root = _folder(root)
    if idx.is_here(root):
        return "fashion-mnist" if "fashion" in str(root.resolve()).lower() else "mnist"
    for name, source in SOURCES.items():
        if source.find(root):
            return name
    titles = [source.title for source in SOURCES.values()]
    raise FileNotFoundError(f"root must hold {', '.join(titles[:-1])} or {titles[-1]}; none was found in {str(root)!r}")


def _folder(root: str | Path) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        state = "is a file" if root.exists() else "is not there"
        raise FileNotFoundError(f"root must be a folder, got {str(root)!r}, which {state}")
    return root
