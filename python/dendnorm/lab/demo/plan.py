"""What the demonstration trains: a small and a wide network, and the search for their learning rates."""

from __future__ import annotations

from typing import Any

from ..search import Grid
from ..settings import Settings

__all__ = ["GRIDS", "plan"]

# Hidden widths and density. One network that is too small for sparsity to pay, and one that is not.
SIZES: tuple[tuple[tuple[int, ...], float], ...] = (((100,), 0.2), ((1000, 1000), 0.05))
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # the same for every network, and past what any of them can take
S = 25.0  # of the settings, which the networks here do not look at

# Rates and rewirings fall to nothing, so that what is measured last is a network at rest.
FALLING = {"schedule": "cosine", "zeta_schedule": "cosine"}

# By data set; None: the others. The bundled digits are few and small: a minute on two cores.
GRIDS = {
    "digits": Grid(lr=RATES, s=(S,), epochs=3, validation=300),
    None: Grid(lr=RATES, s=(S,), epochs=1, validation=10_000),
}
OWN: dict[str | None, dict[str, Any]] = {"digits": {"batch": 10}, None: {"batch": 100}}


def plan(data: str = "digits", **given: Any) -> tuple[list[Settings], Grid]:
    """The settings of each size, before a learning rate is chosen, and the search for it.

    Args:
        given: fields of ``Settings`` other than widths and density.
    """
    key = data if data in GRIDS else None
    fixed = {"data": data, "activation": "relu", "matched": True, "s": S, **FALLING} | OWN[key] | given
    return [Settings(hidden=hidden, epsilon=density, **fixed) for hidden, density in SIZES], GRIDS[key]
