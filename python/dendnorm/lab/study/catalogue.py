"""The studies: what each asks, the networks that it compares, what is chosen on held-out images, and what is tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..results import label
from ..search import Grid
from ..settings import Settings

__all__ = ["AREA", "LAST", "STUDIES", "Arm", "Panel", "Study"]

LAST, AREA = "last epoch", "area"  # of the curve: the mean over epochs


@dataclass(frozen=True)
class Arm:
    """One kind of network.

    Attributes:
        kind: a norm, or a kind of ``equal``.
        changes: settings in place of the panel's.
    """

    name: str
    kind: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One task for every arm."""

    title: str
    settings: Settings


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        layout: of its picture: a key of ``pictures.PICTURES``.
        grid: the search that every arm has.
        pairs: arms to compare, each with the one that it is measured against.
        measures: what is compared of the accuracy before rewiring: epochs, ``LAST`` and ``AREA``.
        timed: whether a step is timed.
        same: every arm has the one point of the grid that is best for the mean of all arms, and not its own. One trial
            chooses, so that an own point can be a lucky one.
    """

    title: str
    question: str
    layout: str
    panels: tuple[Panel, ...]
    arms: tuple[Arm, ...]
    grid: Grid
    pairs: tuple[tuple[str, str], ...]
    measures: tuple[int | str, ...] = (2, LAST, AREA)
    timed: bool = False
    same: bool = False


_NAMES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
# The paper's network and rewiring, with units and a minibatch that learn in a few epochs. Everybody starts alike.
_BASE = Settings(hidden=(100,), activation="relu", batch=100, epochs=6, trials=10, start="equal", regrowth="zero",
                 sample=1000)  # fmt: skip
_RATES = (0.1, 0.3, 1.0, 3.0)
_SCALES = (0.5, 1.0, 2.0)


def _arm(kind: str) -> Arm:
    return Arm(label(kind), kind)


def _grid(scales: tuple[float, ...], **also: tuple[Any, ...]) -> Grid:
    return Grid(lr=_RATES, s=(_BASE.s,), epochs=2, also={"scale": scales, **also})


def _of(data: str, **settings: Any) -> Settings:
    return replace(_BASE, data=data, **settings)


_CONTROL, _DENDRITIC, _MEAN = _arm("none"), _arm("l0"), _arm("l0-mean")
_WEIGHT, _LAYER = _arm("weight_norm"), _arm("layer_norm")

# Dense against sparse: rates and rewirings fall to nothing, so that networks at rest are compared.
_FALLING = {"schedule": "cosine", "zeta_schedule": "cosine"}
_DENSE = Arm(label("dense"), "dense", {"epsilon": 1.0, "zeta": 0.0})
_NARROW = Arm(label("dense-narrow"), "dense-narrow", {"zeta": 0.0})
_STATIC = Arm("static sparse", "none", {"zeta": 0.0})
_SET, _RIGL = Arm("SET", "none"), Arm("RigL", "none", {"grow": "gradient"})
_SET_DENDRITIC = Arm("SET, dendritic", "l0")

STUDIES: dict[str, Study] = {
    "scale": Study(
        "Learning rate, scale and norm on equal terms",
        "With the same start, the same search over learning rate, scale of the start and of new connections: does"
        " dividing by the count of inputs help, and more than other norms do?",
        "differences",
        tuple(
            Panel(f"{_NAMES[data]}, {density:.0%}", _of(data, epsilon=density))
            for density in (0.05, 0.02, 0.2)
            for data in _NAMES
        ),
        (_CONTROL, _DENDRITIC, _MEAN, _WEIGHT, _LAYER),
        _grid(_SCALES, regrowth=("zero", "matched", "normal")),
        (
            *((arm.name, _CONTROL.name) for arm in (_DENDRITIC, _MEAN, _WEIGHT, _LAYER)),
            (_DENDRITIC.name, _MEAN.name),
        ),
    ),
    "fan-in": Study(
        "Where the number of inputs varies",
        "Neurons with very different numbers of inputs: does dividing by each one's own count help, against none and"
        " against the mean count? And how far do hubs and poorly connected neurons go?",
        "fan-in",
        # Nothing is rewired, so that numbers of inputs stay what they are.
        tuple(
            Panel(f"{_NAMES[data]}, {kind}", _of(data, epsilon=0.05, degrees=kind, zeta=0.0, moves=(1,)))
            for data in ("fashion-mnist", "mnist")
            for kind in ("uniform", "lognormal", "power-law")
        ),
        (_CONTROL, _DENDRITIC, _MEAN),
        _grid(_SCALES),
        ((_DENDRITIC.name, _CONTROL.name), (_DENDRITIC.name, _MEAN.name)),
    ),
    "dense": Study(
        "Sparse networks against dense ones",
        "At equal accuracy, what does a sparse network save; at equal cost, what does it gain?",
        "pareto",
        tuple(
            Panel(f"{_NAMES[data]}, {density:.0%}", _of(data, epsilon=density, **_FALLING))
            for data in ("fashion-mnist", "mnist")
            for density in (0.3, 0.1, 0.03, 0.01)
        ),
        (_DENSE, _NARROW, _STATIC, _SET, _RIGL, _SET_DENDRITIC),
        _grid((1.0,)),
        (
            (_SET.name, _DENSE.name),
            (_SET.name, _NARROW.name),
            (_SET.name, _STATIC.name),
            (_RIGL.name, _SET.name),
            (_SET_DENDRITIC.name, _SET.name),
        ),
        measures=(LAST,),
        timed=True,
    ),
    "extreme": Study(
        "One connection in a thousand",
        "A wide network with 0.1 % of its connections against a dense one with as many parameters: what is gained, and"
        " what does a step take?",
        "pareto",
        tuple(
            Panel(f"{_NAMES[data]}, 2 x 2000, 0.1 %", _of(data, hidden=(2000, 2000), epsilon=0.001, **_FALLING))
            for data in ("fashion-mnist", "mnist")
        ),
        (_NARROW, _STATIC, _SET, _RIGL, _SET_DENDRITIC),
        _grid((1.0,)),
        (
            (_SET.name, _NARROW.name),
            (_SET.name, _STATIC.name),
            (_RIGL.name, _NARROW.name),
            (_RIGL.name, _SET.name),
            (_SET_DENDRITIC.name, _SET.name),
        ),
        measures=(LAST,),
        timed=True,
    ),
}
