"""Rewiring under Lightning (the package pytorch_lightning)."""

from __future__ import annotations

from typing import Any

from .._extras import require
from .core import LightningRewiring

_Callback: Any = require("pytorch_lightning", "lightning").Callback

__all__ = ["RewiringCallback"]


class RewiringCallback(LightningRewiring, _Callback):
    __doc__ = LightningRewiring.__doc__
