"""Where the modules of version 0.1 are now, so that its pickles find their classes."""

from __future__ import annotations

import importlib
import sys

_MOVED = {
    "activations": "nn.activations",
    "allocation": "models.allocation",
    "container": "checkpoint.container",
    "convert": "models.sparsify",
    "drop": "rewiring.drop",
    "functional": "nn.functional",
    "grow": "rewiring.grow",
    "layers": "nn.linear",
    "moving": "rewiring.writing",
    "norms": "nn.norms",
    "observing": "rewiring.observing",
    "reports": "rewiring.reports",
    "resizing": "rewiring.resize",
    "schedules": "rewiring.schedules",
    "similarity": "rewiring.similarity",
    "summaries": "models.summary",
}


def register() -> None:
    """Let ``import dendnorm.layers`` and its like go on; ``dendnorm.rewiring`` has ``SET`` as before."""
    # By name: some rooms offer a function under the name of the module that it comes from.
    for name, place in _MOVED.items():
        sys.modules.setdefault(f"dendnorm.{name}", importlib.import_module(f"dendnorm.{place}"))
