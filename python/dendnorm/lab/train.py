"""The job of ``dendnorm train``: the same sparse network under several norms, side by side, over several trials."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._extras import require
from ..analysis import topology as analysis
from ..models.groups import param_groups
from ..nn import norms
from ..nn.activations import SReLU
from ..nn.linear import SparseLinear
from ..ops import library as _ops
from ..rewiring import schedules
from ..rewiring.set import SET
from . import data as data_module
from .report import markdown_table, write_text

__all__ = ["Settings", "build_network", "choose_device", "evaluate", "label", "run", "summarise", "train_network",
           "write"]  # fmt: skip

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
FILTER, POOL = 5, 2  # the paper's convolution (figure 3B)
CHUNK = 4000  # examples turned into floats at a time in training
EVALUATION_BATCH = 250
BAR_EVERY = 50  # steps between two updates of the bar: reading the loss waits for a GPU
PHASES = ("before", "after")


@dataclass(frozen=True)
class Settings:
    """One experiment. The defaults are the paper's setting, with fewer epochs and trials.

    Attributes:
        convolution: 5 x 5 filters of a dense convolution before the sparse layers, followed by 2 x 2
            max pooling; 0: none.
        momentum, weight_decay: of SGD; decay is for the weights of sparse and dense layers.
        dropout: share of each hidden layer's outputs that is set to 0 in training.
        schedule: "constant", or "cosine": the learning rate falls to 0 over all steps as half a cosine.
        zeta_schedule: "constant", or "cosine": the share that is rewired falls to 0 over the epochs as half a cosine
            (``schedules.Cosine``), so that nothing new comes when the learning rate is too small for it.
        matched: starts are matched to the number of inputs, as deep networks need: biases are 0, output weights are
            N(0, 1 / inputs), and sparse layers start with weights that act as N(0, 2 / n), n the mean number of
            afferents of the layer (He et al. 2015): the same with and without excitability, so that s decides the
            length of a step alone. Regrown values are drawn as at the start. Norms with a power of ||v|| keep N(0, 1):
            the length of v is nothing to them.
        validation: so many training examples are held out and take the place of the test examples (``data.hold_out``).
        inspect: epochs after whose rewiring the first sparse layer's ``analysis.snapshot`` is recorded; 0: before
            training.

    Raises:
        ValueError: names the setting, what was expected and what came.
    """

    data: str = "digits"
    root: str | None = None
    hidden: tuple[int, ...] = (100,)
    norms: tuple[str, ...] = ("none", "l0")
    trials: int = 3
    epochs: int = 10
    batch: int = 10
    lr: float = 0.05
    activation: str = "sigmoid"
    epsilon: float = 0.2
    zeta: float = 0.15
    s: float = 25.0
    seed: int = 0
    device: str = "auto"
    convolution: int = 0
    momentum: float = 0.0
    weight_decay: float = 0.0
    dropout: float = 0.0
    schedule: str = "constant"
    zeta_schedule: str = "constant"
    matched: bool = False
    validation: int = 0
    inspect: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")

        check("hidden", len(self.hidden) > 0 and all(width >= 1 for width in self.hidden), "one or more positive sizes")
        check("norms", len(self.norms) > 0 and len(set(self.norms)) == len(self.norms), "one or more different norms")
        for name in ("trials", "epochs", "batch"):
            check(name, getattr(self, name) >= 1, "at least 1")
        check("lr", math.isfinite(self.lr) and self.lr > 0, "finite and positive")
        check("activation", self.activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
        check("epsilon", 0 < self.epsilon <= 1, "in (0, 1]")
        check("zeta", 0 <= self.zeta <= 1, "in [0, 1]")
        check("s", math.isfinite(self.s), "finite")
        check("s", self.s != 0 or not self.matched, "other than 0 where starts are matched")
        check("seed", self.seed >= 0, "at least 0")
        check("convolution", self.convolution >= 0, "at least 0")
        check("momentum", 0 <= self.momentum < 1, "in [0, 1)")
        check("weight_decay", math.isfinite(self.weight_decay) and self.weight_decay >= 0, "finite and at least 0")
        check("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        for name in ("schedule", "zeta_schedule"):
            check(name, getattr(self, name) in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        check("validation", self.validation >= 0, "at least 0")


def label(norm: str) -> str:
    """The name of a norm in tables and pictures: the paper's words for the paper's norms."""
    known = {
        "none": "control",
        "l0": "dendritic (L0)",
        "l0-variable": "dendritic (L0), one excitability per neuron",
        "weight_norm": "heterosynaptic (weight normalisation)",
        "joint": "joint (L0 and L2)",
    }
    if norm.startswith("lp-variable:"):
        return f"L{norm.partition(':')[2]}, one excitability per neuron"
    if norm.startswith("lp:"):
        return f"L{norm.partition(':')[2]}"
    return known.get(norm, norm)


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one and this build has kernels for it, else the CPU.

    Raises:
        ValueError: a device that is not there.
    """
    cuda = torch.cuda.is_available() and _ops.has_kernel("sparse_linear", torch.device("cuda"))
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not cuda:
        raise ValueError(
            f"device {name!r} needs a GPU and a build with CUDA (`dendnorm info` tells), got neither or one"
        )
    return device


def _draw_normal(parameter: nn.Parameter, generator: torch.Generator, std: float = 1.0) -> None:
    with torch.no_grad():
        parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(std))


def build_network(
    image_shape: tuple[int, int, int], classes: int, settings: Settings, norm: str, seed: int,
    device: torch.device | str = "cpu"
) -> nn.Sequential:  # fmt: skip
    """Sparse hidden layers and a dense output layer that is not normalised (the paper, Methods).

    All biases and the output weights are N(0, 1) (``Settings.matched`` has another choice); filters are N(0, 1 / their
    inputs), which keeps sigmoids out of saturation (the paper does not say). A shared excitability is one parameter for
    all hidden layers.
    Networks of one seed start from the same connections and values, whatever their norm.

    Args:
        image_shape: (channels, height, width) of the inputs, which come as rows of their product.

    Raises:
        ValueError: images too small for the convolution.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = norms.resolve(norm)
    shared: norms.Norm | None = None
    layers: list[nn.Module] = []
    features = math.prod(image_shape)
    if settings.convolution:
        channels, height, width = image_shape
        if min(height, width) < FILTER + POOL - 1:
            raise ValueError(
                f"convolution needs images of {FILTER + POOL - 1} pixels a side or more, got {height} x {width}"
            )
        filters = nn.Conv2d(channels, settings.convolution, FILTER, device=device)
        _draw_normal(filters.weight, generator, (channels * FILTER**2) ** -0.5)
        _draw_normal(filters.bias, generator)
        # Channels last is several times faster on a CPU; and the largest activation is that of the largest input.
        filters.to(memory_format=torch.channels_last)
        layers += [nn.Unflatten(1, image_shape), filters, nn.MaxPool2d(POOL), ACTIVATIONS[_pointwise(settings)](0)]
        layers += [nn.Flatten()]
        features = settings.convolution * math.prod((size - FILTER + 1) // POOL for size in (height, width))
    for index, width in enumerate(settings.hidden):
        # A norm that has a parameter starts at s; the control has none.
        if norm == "none":
            layer_norm: norms.Norm = chosen
        elif chosen.variable or shared is None:
            layer_norm = norms.Norm(chosen.a, chosen.b, chosen.p, variable=chosen.variable, s=settings.s)
            shared = layer_norm
        else:
            layer_norm = shared
        layer = SparseLinear(
            features, width, density=settings.epsilon, norm=layer_norm, seed=seed * 1000 + index, device=device
        )
        _draw_normal(layer.bias, generator, 0.0 if settings.matched else 1.0)
        with torch.no_grad():
            layer.weight.mul_(_std(layer, settings))
        activation = ACTIVATIONS[settings.activation](width).to(device)
        layers += [layer, activation, *([nn.Dropout(settings.dropout)] if settings.dropout else [])]
        features = width
    head = nn.Linear(features, classes, device=device)
    _draw_normal(head.weight, generator, features**-0.5 if settings.matched else 1.0)
    _draw_normal(head.bias, generator, 0.0 if settings.matched else 1.0)
    return nn.Sequential(*layers, head)


def _pointwise(settings: Settings) -> str:
    """The activation of the convolution: SReLU has parameters for each unit, ReLU is its form without them."""
    return "relu" if settings.activation == "srelu" else settings.activation


def _std(layer: SparseLinear, settings: Settings) -> float:
    """Standard deviation of the values that a layer starts and regrows with: see ``Settings.matched``."""
    if not settings.matched or layer.norm.b != 0 or layer.nnz == 0:
        return 1.0
    afferents = layer.nnz / layer.out_features
    factor = settings.s / afferents**layer.norm.a if layer.norm.scales else 1.0
    return math.sqrt(2 / afferents) / abs(factor)


class _Rewiring(SET):
    """SET, whose new connections have the spread that the layer started with."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, settings: Settings, seed: int
    ) -> None:
        falls = settings.zeta_schedule == "cosine"
        zeta = schedules.Cosine(settings.zeta, settings.epochs) if falls else settings.zeta
        super().__init__(model, optimizer, zeta=zeta, seed=seed)
        self.settings = settings

    def draw(self, layer: SparseLinear, k: int, step: int, index: int, device: torch.device) -> torch.Tensor:
        return super().draw(layer, k, step, index, device).mul_(_std(layer, self.settings))


@torch.no_grad()
def evaluate(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, scale: float) -> tuple[float, float]:
    """Mean log-likelihood cost and accuracy.

    Args:
        inputs: (examples, features), uint8. targets: (examples,), int64.
    """
    cost = torch.zeros((), dtype=torch.float64, device=inputs.device)
    correct = torch.zeros((), dtype=torch.int64, device=inputs.device)
    model.eval()
    for rows, wanted in zip(inputs.split(EVALUATION_BATCH), targets.split(EVALUATION_BATCH), strict=True):
        scores = model(rows.float().mul_(scale))
        cost += nn.functional.cross_entropy(scores, wanted, reduction="sum")
        correct += (scores.argmax(1) == wanted).sum()
    model.train()
    return cost.item() / len(targets), correct.item() / len(targets)


class Descent:
    """SGD for every parameter of a network.

    Without momentum and decay it has no state, and is written out: ``torch.optim.SGD`` takes a third of a step of
    the paper's networks for itself (60 to 150 of 300 to 400 microseconds).
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.parameters = list(model.parameters())
        self.optimizer: torch.optim.Optimizer | None = None
        if settings.momentum or settings.weight_decay:
            groups = param_groups(model, weight_decay=settings.weight_decay)
            self.optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)

    def step(self, loss: torch.Tensor, lr: float) -> None:
        if self.optimizer is None:
            with torch.no_grad():
                for parameter, gradient in zip(
                    self.parameters, torch.autograd.grad(loss, self.parameters), strict=True
                ):
                    parameter.add_(gradient, alpha=-lr)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def _train_epoch(
    model: nn.Module,
    descent: Descent,
    data: data_module.DataSet,
    settings: Settings,
    epoch: int,
    generator: torch.Generator,
    tick: Callable[[int, float], None],
) -> None:
    """One pass in a new order. The loop slices pieces shuffled beforehand: at 10 rows a step, every call counts."""
    inputs, targets = data.train_inputs, data.train_targets
    order = torch.randperm(len(targets), generator=generator).to(targets.device)
    chunk = max(1, CHUNK // settings.batch) * settings.batch
    steps, step = 0, (epoch - 1) * _steps(data, settings)
    total = settings.epochs * _steps(data, settings)
    rate = SCHEDULES[settings.schedule]
    for piece in order.split(chunk):
        rows = inputs[piece].float().mul_(data.scale)
        for x, y in zip(rows.split(settings.batch), targets[piece].split(settings.batch), strict=True):
            loss = nn.functional.cross_entropy(model(x), y)
            descent.step(loss, settings.lr * rate(step / total))
            step += 1
            steps += 1
            if steps == BAR_EVERY:
                tick(steps, loss.item())
                steps = 0
    tick(steps, loss.item())


def _steps(data: data_module.DataSet, settings: Settings) -> int:
    """Steps of an epoch."""
    return math.ceil(len(data.train_targets) / settings.batch)


def train_network(
    record: dict[str, Any],
    data: data_module.DataSet,
    settings: Settings,
    device: torch.device,
    tick: Callable[[int, float], None],
    finished: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> None:
    """Train one network: fills record["epochs"] epoch by epoch, so that an interrupted run keeps what it has.

    Args:
        record: with "norm" and "seed"; "epochs" is an empty list.
        data: on `device`.
        tick: told the steps done since the last call, and the loss.
        finished: told the entry of each finished epoch.

    Raises:
        FloatingPointError: the cost is not finite any more.
    """
    seed = record["seed"]
    torch.manual_seed(seed)  # dropout's
    model = build_network(data.image_shape, len(data.classes), settings, record["norm"], seed, device)
    descent = Descent(model, settings)
    rewire = _Rewiring(model, descent.optimizer, settings, seed)
    generator = torch.Generator().manual_seed(seed)

    def guarded(done: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"the cost became {loss}; a smaller learning rate may help")
        tick(done, loss)

    def look(epoch: int) -> None:
        if epoch in settings.inspect:
            hidden, layer = analysis.first_sparse(model)
            inputs = hidden(data.test_inputs.float().mul_(data.scale))
            record.setdefault("inside", []).append({"epoch": epoch} | analysis.snapshot(layer, inputs))

    look(0)
    for epoch in range(1, settings.epochs + 1):
        start = time.perf_counter()
        _train_epoch(model, descent, data, settings, epoch, generator, guarded)
        entry: dict[str, Any] = {"epoch": epoch, "seconds": time.perf_counter() - start}
        for phase in PHASES:
            if phase == "after":
                rewire.step()
            train = evaluate(model, data.train_inputs, data.train_targets, data.scale)
            test = evaluate(model, data.test_inputs, data.test_targets, data.scale)
            entry[phase] = {"train_cost": train[0], "test_cost": test[0], "test_accuracy": test[1]}
        record["epochs"].append(entry)
        look(epoch)
        finished(entry)
    record["complete"] = True


def load_data(settings: Settings, device: torch.device) -> data_module.DataSet:
    """The data set of the settings, on a device, with the validation examples in place of the test ones if asked.

    Raises:
        ValueError, FileNotFoundError, dendnorm.data.DataFileError: as ``data.load``; more validation examples asked for
            than there are.
    """
    data = data_module.load(settings.data, settings.root)
    if settings.validation:
        data = data_module.hold_out(data, settings.validation)
    names = ("train_inputs", "train_targets", "test_inputs", "test_targets")
    return replace(data, **{name: getattr(data, name).to(device) for name in names})


def new_record(settings: Settings, norm: str, trial: int) -> dict[str, Any]:
    """What ``train_network`` fills, for the trial of a norm."""
    record: dict[str, Any] = {"norm": norm, "label": label(norm), "trial": trial, "complete": False}
    return record | {"seed": settings.seed + trial, "epochs": []}


def _train_with_bar(
    record: dict[str, Any], data: data_module.DataSet, settings: Settings, device: torch.device, progress: bool
) -> None:
    tqdm = require("tqdm", "train").tqdm
    name = f"{record['label']}, trial {record['trial'] + 1}/{settings.trials}"
    shown: dict[str, str] = {}
    total = settings.epochs * _steps(data, settings)
    with tqdm(total=total, desc=name, unit="step", disable=not progress, dynamic_ncols=True) as bar:

        def tick(done: int, loss: float) -> None:
            shown["loss"] = f"{loss:.3f}"
            bar.set_postfix(shown, refresh=False)
            bar.update(done)

        def finished(entry: dict[str, Any]) -> None:
            shown["accuracy"] = f"{entry['before']['test_accuracy']:.2%}"
            bar.set_postfix(shown)

        train_network(record, data, settings, device, tick, finished)


def run(settings: Settings, out: str | Path, progress: bool = True) -> dict[str, Any]:
    """Train every norm in every trial and write results.json, table.md and curves.png into `out`.

    Norms take turns within a trial, so that an interruption leaves about as many trials of each. After Ctrl-C the
    finished epochs are written and the results say "interrupted": true. A network whose cost stops being finite is
    kept with its reason under "failed", and the others go on.

    Returns:
        what results.json holds.

    Raises:
        ValueError, FileNotFoundError, dendnorm.data.DataFileError: before anything is trained.
    """
    for norm in settings.norms:
        norms.resolve(norm)
    device = choose_device(settings.device)
    data = load_data(settings, device)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    recorded = asdict(settings) | {"device": str(device), "threads": torch.get_num_threads()}
    recorded.pop("root")  # a path of one machine says nothing on another
    results: dict[str, Any] = {
        "settings": recorded,
        "network": [data.features, *settings.hidden, len(data.classes)],
        "examples": {"train": len(data.train_targets), "test": len(data.test_targets)},
        "torch": torch.__version__,
        "interrupted": False,
        "runs": [],
    }
    try:
        for trial in range(settings.trials):
            for norm in settings.norms:
                record = new_record(settings, norm, trial)
                results["runs"].append(record)
                try:
                    _train_with_bar(record, data, settings, device, progress)
                except FloatingPointError as error:
                    record["failed"] = str(error)
                write_text(out / "results.json", json.dumps(results, indent=1))
    except KeyboardInterrupt:
        results["interrupted"] = True
    write(results, out)
    return results


def summarise(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Mean and sample standard deviation per norm, phase, quantity and epoch.

    Only whole trials count; where some norm has none, the epochs that every unfinished trial reached.

    Returns:
        by norm: label, trials, epochs (list), seconds (per epoch; None where it was not kept), and
        [phase][quantity] -> {"mean", "std"} (lists).
    """
    by_norm: dict[str, list[dict[str, Any]]] = {norm: [] for norm in results["settings"]["norms"]}
    for record in results["runs"]:
        if record["epochs"]:
            by_norm[record["norm"]].append(record)
    by_norm = {norm: records for norm, records in by_norm.items() if records}
    if all(any(record["complete"] for record in records) for records in by_norm.values()):
        by_norm = {norm: [r for r in records if r["complete"]] for norm, records in by_norm.items()}
    length = min((len(r["epochs"]) for records in by_norm.values() for r in records), default=0)
    summary: dict[str, dict[str, Any]] = {}
    for norm, records in by_norm.items():
        times = [e["seconds"] for record in records for e in record["epochs"][:length] if "seconds" in e]
        entry: dict[str, Any] = {
            "label": label(norm),
            "trials": len(records),
            "epochs": list(range(1, length + 1)),
            "seconds": sum(times) / len(times) if times else None,
        }
        for phase in PHASES:
            entry[phase] = {}
            for quantity in ("train_cost", "test_cost", "test_accuracy"):
                values = torch.tensor(
                    [[e[phase][quantity] for e in record["epochs"][:length]] for record in records],
                    dtype=torch.float64,
                )
                spread = values.std(0) if len(records) > 1 else torch.zeros(length, dtype=torch.float64)
                entry[phase][quantity] = {"mean": values.mean(0).tolist(), "std": spread.tolist()}
        summary[norm] = entry
    return summary


def write(results: dict[str, Any], out: str | Path) -> None:
    """Write results.json, table.md and curves.png; each appears whole or not at all."""
    from .curves import curves

    out = Path(out)
    summary = summarise(results)
    write_text(out / "results.json", json.dumps(results | {"summary": summary}, indent=1))
    write_text(out / "table.md", table(results, summary))
    if summary:
        temporary = out / "curves.tmp.png"
        curves(results, summary, describe(results), temporary)
        os.replace(temporary, out / "curves.png")


def optimiser(settings: Mapping[str, Any]) -> str:
    """The optimiser of recorded settings in words."""
    parts = [("momentum", settings["momentum"]), ("weight decay", settings["weight_decay"])]
    named = " and ".join(f"{name} {value:g}" for name, value in parts if value)
    return f"SGD with {named}" if named else "plain SGD"


def describe(results: dict[str, Any]) -> str:
    """The experiment in one line, for the head of the table and of the picture."""
    settings = results["settings"]
    return (
        f"{settings['data']}, {'-'.join(map(str, results['network']))}, {settings['epsilon']:.0%} of connections,"
        f" {settings['zeta']:.0%} rewired after each epoch"
    )


def table(results: dict[str, Any], summary: dict[str, dict[str, Any]]) -> str:
    """Markdown: the last epoch of every norm, mean and standard deviation over trials."""
    settings = results["settings"]
    lines = [f"# {describe(results)}", ""]
    lines.append(
        f"{settings['activation']} units, {optimiser(settings)}, minibatch {settings['batch']}, learning rate"
        f" {settings['lr']} ({settings['schedule']}), excitability starts at {settings['s']:g}. Mean and standard"
        " deviation over trials, at the last epoch."
    )
    if results["interrupted"]:
        lines += ["", "**Interrupted: this is what was finished.**"]
    head = ["network", "trials", "epochs", "test accuracy before rewiring", "after rewiring"]
    head += ["training cost before", "after", "seconds per epoch"]

    def cell(values: dict[str, Sequence[float]], percent: bool) -> str:
        mean, spread = values["mean"][-1], values["std"][-1]
        return f"{100 * mean:.2f} ± {100 * spread:.2f} %" if percent else f"{mean:.4f} ± {spread:.4f}"

    rows = []
    for entry in summary.values():
        cells = [entry["label"], str(entry["trials"]), str(len(entry["epochs"]))]
        cells += [cell(entry[phase]["test_accuracy"], True) for phase in PHASES]
        cells += [cell(entry[phase]["train_cost"], False) for phase in PHASES]
        rows.append([*cells, f"{entry['seconds']:.2f}"])
    lines += ["", *markdown_table(head, rows)]
    for record in results["runs"]:
        if "failed" in record:
            lines += ["", f"Failed: {record['label']}, trial {record['trial'] + 1}: {record['failed']}."]
    return "\n".join(lines) + "\n"
