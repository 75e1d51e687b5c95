"""What one experiment is told. A field says by itself how it is checked, offered on the command line and recorded.

A new setting is one field here and the code that obeys it: parser, files, tables and captions read the fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any

from torch import nn

from ..nn import norms as norm_family
from ..nn.activations import SReLU
from ..rewiring.values import STARTS as FRESH
from . import data as data_module
from .degrees import DEGREES

__all__ = ["ACTIVATIONS", "SCHEDULES", "Option", "Settings", "option_of", "words"]

# Given the number of units.
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "sigmoid": lambda units: nn.Sigmoid(),
    "relu": lambda units: nn.ReLU(),
    "tanh": lambda units: nn.Tanh(),
    "srelu": SReLU,
}
SCHEDULES: dict[str, Callable[[float], float]] = {  # of the share of all steps that is done, the share of lr
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
STARTS = ("paper", "equal")
SEED_END = 2**53  # layers draw from a thousand times the seed


@dataclass(frozen=True)
class Option:
    """What a field of ``Settings`` is besides its name, type and default.

    Attributes:
        help: for the command line.
        choices: the only values; None: whatever `check` takes.
        check: whether a value is good, and in words which are.
        flags: names on the command line; empty: the field's own.
        metavar: stands for a value in the help.
        words: the value in a caption, from it and all recorded settings; None: its name and value where it is not the
            default.
        recorded: whether results hold it.
        decides: whether the numbers of one trial depend on it.
    """

    help: str
    choices: Collection[str] | None = None
    check: tuple[Callable[[Any], bool], str] | None = None
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    words: Callable[[Any, Mapping[str, Any]], str] | None = None
    recorded: bool = True
    decides: bool = True


def setting(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"option": Option(help, **more)})


def option_of(described: Field) -> Option:
    return described.metadata["option"]


def nothing(value: Any, recorded: Mapping[str, Any]) -> str:
    """The words of what captions say elsewhere."""
    return ""


def at_least(lowest: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value >= lowest, f"at least {lowest}"


SHARE = (lambda value: 0 <= value < 1, "in [0, 1)")
SIZES = (lambda widths: len(widths) > 0 and all(width >= 1 for width in widths), "one or more positive sizes")
DIFFERENT = (lambda names: 0 < len(names) == len(set(names)), "one or more different norms")


@dataclass(frozen=True)
class Settings:
    """One experiment. The defaults are the paper's setting, with fewer epochs and trials.

    Attributes:
        convolution: 5 x 5 filters of a dense convolution before the sparse layers, followed by 2 x 2
            max pooling; 0: none.
        momentum, weight_decay: of SGD; decay is for the weights of sparse and dense layers.
        zeta_schedule: "cosine": the share that is rewired falls to 0 over the epochs as half a cosine
            (``schedules.Cosine``), so that nothing new comes when the learning rate is too small for it.
        matched: starts are matched to the number of inputs, as deep networks need: biases are 0, output weights are
            N(0, 1 / inputs), and sparse layers start with weights that act as N(0, 2 / n), n the mean number of
            afferents of the layer (He et al. 2015): the same with and without excitability, so that s decides the
            length of a step alone. Regrown values have the spread that the layer then has. Norms with a power of ||v||
            keep N(0, 1): the length of v is nothing to them.
        start: "equal": networks of a seed begin as the same function, whatever normalises them (``equal``): weights
            that act are N(0, scale^2 2 / n_i), n_i the inputs of the neuron, values are the weights where a neuron has
            the mean number of inputs, biases are 0 and output weights N(0, 1 / inputs). ``s`` and ``matched`` play no
            part.
        scale: of the weights of that start.
        degrees: numbers of inputs of the neurons in that start: "uniform", as connections drawn alike give them,
            "lognormal" or "power-law" (``degrees``).
        regrowth: values of new connections: "zero", "matched", with the layer's spread, or "normal", from N(0, 1);
            "start": normal for the paper's start, matched for the others.
        grow: "gradient": new connections come where the gradient of an epoch's last minibatch is largest, as RigL's.
        sample: the training cost is that of so many training examples, the first; 0: of all.
        moves: epochs over which the first sparse layer's steps are recorded (``movement``).
        validation: so many training examples are held out and take the place of the test examples (``data.hold_out``).
        inspect: epochs after whose rewiring the first sparse layer's ``analysis.snapshot`` is recorded; 0: before
            training.

    Raises:
        ValueError: names the setting, what was expected and what came.
    """

    data: str = setting("digits", "data set; left out: what is found in --root, or digits without it",
                        choices=data_module.NAMES, words=nothing)  # fmt: skip
    root: str | None = setting(None, "folder of the data set's files, or the folder that holds it", metavar="DIR",
                               recorded=False, decides=False)  # fmt: skip
    hidden: tuple[int, ...] = setting((100,), "sizes of the hidden layers", check=SIZES, metavar="M", words=nothing)
    norms: tuple[str, ...] = setting(("none", "l0"),
                                     "none, l0, l0-variable, lp:2, lp-variable:2, weight_norm or joint, to compare",
                                     check=DIFFERENT, flags=("--norm",), metavar="NORM", words=nothing,
                                     decides=False)  # fmt: skip
    trials: int = setting(3, "networks for each norm", check=at_least(1), words=nothing, decides=False)
    epochs: int = setting(10, "passes over the training data", check=at_least(1), words=nothing)
    activation: str = setting("sigmoid", "hidden units", choices=ACTIVATIONS,
                              words=lambda value, recorded: f"{value} units")  # fmt: skip
    momentum: float = setting(0.0, "of SGD", check=SHARE, words=lambda value, recorded: _optimiser(recorded))
    weight_decay: float = setting(0.0, "of SGD, for weights", words=nothing, check=(
        lambda value: math.isfinite(value) and value >= 0, "finite and at least 0"))  # fmt: skip
    batch: int = setting(10, "examples in a minibatch", check=at_least(1),
                         words=lambda value, recorded: f"minibatch {value}")  # fmt: skip
    lr: float = setting(0.05, "learning rate of SGD", check=(
        lambda value: math.isfinite(value) and value > 0, "finite and positive"),
        words=lambda value, recorded: f"learning rate {value}")  # fmt: skip
    schedule: str = setting("constant", "of the learning rate: cosine lets it fall to 0 over all steps",
                            choices=SCHEDULES, words=lambda value, recorded: f"{value} learning rate")  # fmt: skip
    epsilon: float = setting(0.2, "density, the paper's epsilon: share of connections that exist",
                             flags=("--density", "--epsilon"), words=nothing,
                             check=(lambda value: 0 < value <= 1, "in (0, 1]"))  # fmt: skip
    zeta: float = setting(0.15, "share of connections rewired after each epoch", words=nothing,
                          check=(lambda value: 0 <= value <= 1, "in [0, 1]"))  # fmt: skip
    zeta_schedule: str = setting("constant", "of that share", choices=SCHEDULES)
    s: float = setting(25.0, "excitability at the start", check=(math.isfinite, "finite"),
                       words=lambda value, recorded: f"excitability starts at {value:g}")  # fmt: skip
    convolution: int = setting(0, "5 x 5 filters before the sparse layers, and pooling", check=at_least(0))
    dropout: float = setting(0.0, "share of hidden outputs set to 0 in training", check=SHARE)
    matched: bool = setting(False, "starts matched to the number n of inputs: biases 0, output weights N(0, 1/n),"
                            " sparse weights act as N(0, 2/n)")  # fmt: skip
    start: str = setting("paper", "how networks start: as in the paper, or equal: as the same function for every norm",
                         choices=STARTS)  # fmt: skip
    scale: float = setting(1.0, "with --start equal: weights act as N(0, 2/n) times the square of this", check=(
        lambda value: math.isfinite(value) and value > 0, "finite and positive"))  # fmt: skip
    degrees: str = setting("uniform", "with --start equal: how numbers of inputs vary over neurons", choices=DEGREES)
    regrowth: str = setting("start", "values of new connections; start: as the layer's start has them",
                            choices=("start", *FRESH))  # fmt: skip
    grow: str = setting("random", "where new connections come", choices=("random", "gradient"))
    sample: int = setting(0, "training examples that the training cost is measured on; 0: all", check=at_least(0))
    moves: tuple[int, ...] = setting((), "epochs over which the first sparse layer's steps are recorded", check=(
        lambda epochs: all(epoch >= 1 for epoch in epochs), "epochs from 1 on"), metavar="EPOCH",
        words=nothing)  # fmt: skip
    validation: int = setting(0, "training examples held out in place of the test examples", check=at_least(0))
    inspect: tuple[int, ...] = setting((), "epochs after which the first sparse layer's inside is recorded; 0: before",
                                       check=(lambda epochs: all(epoch >= 0 for epoch in epochs), "epochs from 0 on"),
                                       metavar="EPOCH", words=nothing)  # fmt: skip
    seed: int = setting(0, "seed of the first trial; the next ones count up", words=nothing, decides=False,
                        check=(lambda value: 0 <= value < SEED_END, "in [0, 2^53)"))  # fmt: skip
    device: str = setting("auto", "auto, cpu or cuda", words=nothing)

    def __post_init__(self) -> None:
        for described in fields(self):
            option, value = option_of(described), getattr(self, described.name)
            if option.choices is not None and value not in option.choices:
                raise ValueError(f"{described.name} must be one of {', '.join(option.choices)}, got {value!r}")
            if option.check is not None and not option.check[0](value):
                also = f" ({described.name} is the density)" if "--density" in option.flags else ""
                raise ValueError(f"{described.name} must be {option.check[1]}, got {value!r}{also}")
        if self.start == "paper" and (self.scale, self.degrees) != (1.0, "uniform"):
            raise ValueError(
                f"scale and degrees must be 1 and uniform where start is paper, got {self.scale:g} and {self.degrees}"
            )
        if self.matched and self.s == 0:
            raise ValueError(f"s must be other than 0 where starts are matched, got {self.s}")
        for norm in self.norms:
            norm_family.resolve(norm)

    def recorded(self) -> dict[str, Any]:
        """What results hold: not a path of one machine, which says nothing on another."""
        return self._described(lambda option: option.recorded)

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of one trial of one norm, besides that norm and the trial's own seed."""
        return self._described(lambda option: option.decides)

    def _described(self, wanted: Callable[[Option], bool]) -> dict[str, Any]:
        values = asdict(self)
        return {described.name: values[described.name] for described in fields(self) if wanted(option_of(described))}


def words(recorded: Mapping[str, Any], leave_out: Collection[str] = ()) -> str:
    """Recorded settings for a caption: what every experiment says, and whatever is not its default."""
    parts = []
    for described in fields(Settings):
        name = described.name
        if name not in recorded or name in leave_out:
            continue
        told, value = option_of(described).words, recorded[name]
        if told is not None:
            parts.append(told(value, recorded))
        elif described.default is not MISSING and value != described.default:
            named = name.replace("_", " ")
            parts.append(named if value is True else f"{named} {value}")
    return ", ".join(part for part in parts if part)


def _optimiser(recorded: Mapping[str, Any]) -> str:
    parts = [("momentum", recorded["momentum"]), ("weight decay", recorded["weight_decay"])]
    named = " and ".join(f"{name} {value:g}" for name, value in parts if value)
    return f"SGD with {named}" if named else "plain SGD"
