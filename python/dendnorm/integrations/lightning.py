"""Rewiring under Lightning (the package lightning)."""

from __future__ import annotations

from .._extras import require
from ._lightning import Rewiring

_module = require("lightning.pytorch", "lightning")

__all__ = ["RewiringCallback"]


class RewiringCallback(Rewiring, _module.Callback):
    __doc__ = Rewiring.__doc__
