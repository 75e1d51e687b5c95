"""Rewiring under Lightning (the package pytorch_lightning)."""

from __future__ import annotations

from .._extras import require
from ._lightning import Rewiring

_module = require("pytorch_lightning", "lightning")

__all__ = ["RewiringCallback"]


class RewiringCallback(Rewiring, _module.Callback):
    __doc__ = Rewiring.__doc__
