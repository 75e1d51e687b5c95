"""Rewiring under Lightning (the package lightning)."""

from __future__ import annotations

from .._extras import require
from .core import LightningRewiring

_module = require("lightning.pytorch", "lightning")

__all__ = ["RewiringCallback"]


class RewiringCallback(LightningRewiring, _module.Callback):
    __doc__ = LightningRewiring.__doc__
