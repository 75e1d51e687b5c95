"""The paper's figures and its table: what each trains, what it claims, and the numbers that the paper prints."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..search import Grid
from ..settings import Settings

__all__ = ["EXPERIMENTS", "Experiment", "Panel"]


@dataclass(frozen=True)
class Panel:
    """One network on one data set."""

    title: str
    settings: Settings
    grid: Grid | None = None  # None: the settings hold for every norm
    published: dict[str, float] = field(default_factory=dict)  # test accuracy in %, by norm


@dataclass(frozen=True)
class Experiment:
    """One figure or table."""

    title: str
    layout: str  # of its picture and table: a key of ``figures.FIGURES`` and ``tables.TABLES``
    claim: str  # what the paper says it shows
    panels: tuple[Panel, ...]


_BASE = Settings(data="fashion-mnist", trials=5)
_NAMES = {"mnist": "digits (MNIST)", "fashion-mnist": "fashion"}
_FIRST = tuple(
    Panel(f"{_NAMES[data]}, M = {hidden}", replace(_BASE, data=data, hidden=(hidden,)))
    for hidden in (30, 100, 300)
    for data in ("mnist", "fashion-mnist")
)
_INSIDE = Panel("784-100-10, MNIST", replace(_BASE, data="mnist", trials=3, inspect=(0, 1, 5, 10)))
_ORDERS = (1, 2, 3, 4, 5)
_NORMS = ("l0", *(f"lp:{p}" for p in _ORDERS), "l0-variable", *(f"lp-variable:{p}" for p in _ORDERS))
_GRID = Grid(lr=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0), s=(8.0, 25.0, 80.0, 160.0))
_TABLE_GRID = Grid(lr=(0.03, 0.1, 0.3, 1.0), s=(25.0, 50.0, 100.0, 200.0), dropout=(0.0, 0.3), epochs=8)
# No decay of weights: for w = (s / n) v, that of v is one of w that is (n / s)^2 times as strong.
_TABLE = Settings(hidden=(1000, 1000, 1000), epsilon=0.04, activation="relu", batch=100, momentum=0.9,
                           schedule="cosine", zeta_schedule="cosine", matched=True, trials=2, epochs=60)  # fmt: skip

EXPERIMENTS: dict[str, Experiment] = {
    "1D": Experiment(
        "Learning with and without dendritic normalisation",
        "learning",
        "With dendritic normalisation the cost falls faster and the accuracy is higher, for every width and both data"
        " sets, and trials differ less.",
        _FIRST,
    ),
    "1D-tuned": Experiment(
        "Each norm with the learning rate and excitability that suit it",
        "learning",
        "The same claim, on an equal search for both networks (not in the paper, which gives one learning rate).",
        tuple(replace(panel, grid=_GRID) for panel in _FIRST),
    ),
    "2A": Experiment(
        "Efferent connections of each pixel",
        "efferents",
        "Connections gather on the pixels in the middle, less so with normalisation.",
        (_INSIDE,),
    ),
    "2B": Experiment(
        "Afferents of the hidden neurons",
        "afferents",
        "With normalisation the number of afferents varies less between neurons, weights are smaller and less spread,"
        " and mean weighted inputs lie closer together.",
        (_INSIDE,),
    ),
    "3C": Experiment(
        "Two and three sparse hidden layers",
        "learning",
        "The improvement holds for deeper networks, and seems to grow with their complexity.",
        tuple(Panel(f"{depth} hidden layers of 100", replace(_BASE, hidden=(100,) * depth)) for depth in (2, 3)),
    ),
    "3D": Experiment(
        "A sparse layer after a convolution",
        "learning",
        "The improvement holds for a sparse layer behind convolution and max pooling.",
        (Panel("20 filters 5 x 5, max pooling, sparse 2880-100", replace(_BASE, convolution=20)),),
    ),
    "3E": Experiment(
        "Threshold-linear hidden units",
        "learning",
        "The improvement holds for units that do not saturate.",
        (Panel("784-100-10, ReLU", replace(_BASE, activation="relu")),),
    ),
    "3F": Experiment(
        "Dendritic, heterosynaptic and joint normalisation",
        "learning",
        "Dendritic normalisation is slightly better than heterosynaptic (83.75 % against 82.66 % after 50 epochs), and"
        " the joint one hardly improves after its first epoch.",
        (
            Panel(
                "784-100-10",
                replace(_BASE, epochs=50, norms=("l0", "weight_norm", "joint")),
                published={"l0": 83.75, "weight_norm": 82.66},
            ),
        ),
    ),
    "3G": Experiment(
        "Orders of the norm",
        "orders",
        "p = 0 with one excitability for all is best after 10 epochs, p = 1 with one for each neuron close to it;"
        " elsewhere one for all is better, the more so the higher p.",
        (
            Panel(
                "784-100-10",
                replace(_BASE, epochs=20, trials=3, norms=_NORMS),
            ),
        ),
    ),
    "table1": Experiment(
        "Test accuracy beside the published figures",
        "learning",
        "Dendritic normalisation improves on the published controls on MNIST, Fashion-MNIST and CIFAR-10, and comes"
        " close on COIL-100.",
        (
            Panel(
                "MNIST, 784-1000-1000-1000-10, 4 %",
                replace(_TABLE, data="mnist"),
                _TABLE_GRID,
                {"none": 98.74, "l0": 99.63},
            ),
            Panel(
                "Fashion-MNIST, 784-200-200-200-10, 20 %",
                replace(_TABLE, data="fashion-mnist", hidden=(200, 200, 200), epsilon=0.2),
                _TABLE_GRID,
                {"none": 89.01, "l0": 92.23},
            ),
            Panel(
                "CIFAR-10, 3072-1000-1000-1000-10, 4 %",
                replace(_TABLE, data="cifar10"),
                _TABLE_GRID,
                {"none": 74.84, "l0": 77.43},
            ),
            Panel(
                "COIL-100, 1024-1000-1000-1000-100, 4 %",
                replace(_TABLE, data="coil100"),
                replace(_TABLE_GRID, validation=1000),
                {"none": 98.68, "l0": 98.47},
            ),
        ),
    ),
}
