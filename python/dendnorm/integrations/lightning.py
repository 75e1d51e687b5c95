"""Rewiring under Lightning (the package lightning)."""

from __future__ import annotations

from typing import Any

from .._extras import require
from .core import LightningRewiring

_Callback: Any = require("lightning.pytorch", "lightning").Callback

__all__ = ["RewiringCallback"]


class RewiringCallback(LightningRewiring, _Callback):
    __doc__ = LightningRewiring.__doc__
