"""Optional packages: imported where they are needed, refused by name where they are missing."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from types import ModuleType

__all__ = ["require"]

# Where the name to import is not the name to install.
_PACKAGES = {"PIL": "pillow", "pytorch_lightning": "pytorch-lightning", "sklearn": "scikit-learn"}


def _packages_of(extra: str) -> list[str]:
    """What an extra installs, from the installed package's own description; nothing in a source tree."""
    try:
        required = metadata.requires("dendnorm") or []
    except metadata.PackageNotFoundError:
        return []
    named = (text.partition(";") for text in required)
    return [package.strip() for package, _, condition in named if re.search(rf"extra == ['\"]{extra}['\"]", condition)]


def require(name: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        name: the module, for example ``"tqdm"`` or ``"sklearn.datasets"``.
        extra: the extra of dendnorm that installs it.

    Raises:
        ImportError: the package is missing; names it, what it is for and the command that installs it.
    """
    top = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A package that is there but lacks one of its own needs must say so itself.
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        package = _PACKAGES.get(top, top)
        # By the packages' own names: dendnorm is built from source, and no index knows its extras.
        wanted = " ".join(dict.fromkeys([package, *_packages_of(extra)]))
        raise ImportError(
            f"dendnorm needs the package {package} for {extra}; it is not installed: pip install {wanted}", name=top
        ) from None
