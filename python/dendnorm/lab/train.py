"""One network's training: epochs of SGD, each measured before and after its rewiring."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..analysis import topology as analysis
from ..models.groups import param_groups
from . import data as data_module
from .movement import Movement
from .networks import build_network, rewirer
from .results import PHASES
from .settings import SCHEDULES, Settings

__all__ = ["Descent", "evaluate", "load_data", "steps_of_epoch", "train_network"]

CHUNK = 4000  # examples turned into floats at a time in training
EVALUATION_BATCH = 250
BAR_EVERY = 50  # steps between two updates of the bar: reading the loss waits for a GPU


def load_data(settings: Settings, device: torch.device) -> data_module.DataSet:
    """The data set of the settings, on a device, with the validation examples in place of the test ones if asked.

    Raises:
        ValueError, FileNotFoundError, data.DataFileError: as ``data.load``; more validation examples asked for than
            there are.
    """
    data = data_module.load(settings.data, settings.root)
    if settings.validation:
        data = data_module.hold_out(data, settings.validation)
    names = ("train_inputs", "train_targets", "test_inputs", "test_targets")
    return replace(data, **{name: getattr(data, name).to(device) for name in names})


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


def steps_of_epoch(data: data_module.DataSet, settings: Settings) -> int:
    return math.ceil(len(data.train_targets) / settings.batch)


def train_epoch(
    model: nn.Module,
    descent: Descent,
    data: data_module.DataSet,
    settings: Settings,
    epoch: int,
    generator: torch.Generator,
    tick: Callable[[int, float], None],
    last: Callable[[], Any] = lambda: None,
) -> None:
    """One pass in a new order; ``last`` is called before its last minibatch.

    The loop slices pieces shuffled beforehand: at 10 rows a step, every call counts.
    """
    inputs, targets = data.train_inputs, data.train_targets
    order = torch.randperm(len(targets), generator=generator).to(targets.device)
    chunk = max(1, CHUNK // settings.batch) * settings.batch
    steps, step = 0, (epoch - 1) * steps_of_epoch(data, settings)
    ends, total = step + steps_of_epoch(data, settings), settings.epochs * steps_of_epoch(data, settings)
    rate = SCHEDULES[settings.schedule]
    for piece in order.split(chunk):
        rows = inputs[piece].float().mul_(data.scale)
        for x, y in zip(rows.split(settings.batch), targets[piece].split(settings.batch), strict=True):
            if step + 1 == ends:
                last()
            loss = nn.functional.cross_entropy(model(x), y)
            descent.step(loss, settings.lr * rate(step / total))
            step += 1
            steps += 1
            if steps == BAR_EVERY:
                tick(steps, loss.item())
                steps = 0
    tick(steps, loss.item())


def train_network(
    record: dict[str, Any],
    data: data_module.DataSet,
    settings: Settings,
    device: torch.device,
    tick: Callable[[int, float], None],
    finished: Callable[[dict[str, Any]], None] = lambda entry: None,
    build: Callable[..., nn.Sequential] = build_network,
) -> None:
    """Train one network: fills record["epochs"] epoch by epoch, so that an interrupted run keeps what it has.

    Args:
        record: with "norm" and "seed"; "epochs" is an empty list.
        data: on `device`.
        tick: told the steps done since the last call, and the loss.
        finished: told the entry of each finished epoch.
        build: makes the network, given what ``networks.build_network`` is.

    Raises:
        FloatingPointError: the cost is not finite any more.
    """
    seed = record["seed"]
    torch.manual_seed(seed)  # dropout's
    model = build(data.image_shape, len(data.classes), settings, record["norm"], seed, device)
    descent = Descent(model, settings)
    rewire = rewirer(model, descent.optimizer, settings, seed)
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

    observe = rewire.observe if rewire is not None and settings.grow == "gradient" else lambda: None
    judged = settings.sample or len(data.train_targets)
    look(0)
    for epoch in range(1, settings.epochs + 1):
        movement = Movement(analysis.first_sparse(model)[1]) if epoch in settings.moves else None
        start = time.perf_counter()
        train_epoch(model, descent, data, settings, epoch, generator, guarded, observe)
        entry: dict[str, Any] = {"epoch": epoch, "seconds": time.perf_counter() - start}
        if movement is not None:
            record.setdefault("moves", []).append({"epoch": epoch} | movement.ended())
        for phase in PHASES:
            if phase == "after":
                if rewire is None:  # nothing has changed
                    entry[phase] = dict(entry["before"])
                    continue
                rewire.step()
            train = evaluate(model, data.train_inputs[:judged], data.train_targets[:judged], data.scale)
            test = evaluate(model, data.test_inputs, data.test_targets, data.scale)
            entry[phase] = {"train_cost": train[0], "test_cost": test[0], "test_accuracy": test[1]}
        record["epochs"].append(entry)
        look(epoch)
        finished(entry)
    record["complete"] = True
