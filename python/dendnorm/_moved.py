"""Where the modules of version 0.1 are now, so that its pickles find their classes."""

from __future__ import annotations

import sys
from types import ModuleType

from .checkpoint import container
from .models import allocation, sparsify, summary
from .nn import activations, functional, linear, norms
from .rewiring import drop, grow, observing, reports, resize, schedules, similarity, writing

_MOVED: dict[str, ModuleType] = {
    "activations": activations,
    "allocation": allocation,
    "container": container,
    "convert": sparsify,
    "drop": drop,
    "functional": functional,
    "grow": grow,
    "layers": linear,
    "moving": writing,
    "norms": norms,
    "observing": observing,
    "reports": reports,
    "resizing": resize,
    "schedules": schedules,
    "similarity": similarity,
    "summaries": summary,
}


def register() -> None:
    """Let ``import dendnorm.layers`` and its like go on; ``dendnorm.rewiring`` has ``SET`` as before."""
    for name, module in _MOVED.items():
        sys.modules.setdefault(f"dendnorm.{name}", module)
