"""Rewiring under Lightning (the package pytorch_lightning)."""

from __future__ import annotations

from .._extras import require
from .core import LightningRewiring

_module = require("pytorch_lightning", "lightning")

__all__ = ["RewiringCallback"]


class RewiringCallback(LightningRewiring, _module.Callback):
    __doc__ = LightningRewiring.__doc__
