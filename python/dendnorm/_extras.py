"""Optional packages: imported where they are needed, refused by name where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]

# Where the name to import is not the name to install.
_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}


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
        raise ImportError(
            f'dendnorm needs the package {package} for {extra}; it is not installed: pip install "dendnorm[{extra}]"',
            name=top,
        ) from None
