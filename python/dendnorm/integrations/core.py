"""What the callbacks of all trainers share: when to rewire, with what, what to log and what to save."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .._arguments import whole
from ..rewiring.reports import RewireReport
from ..rewiring.set import SET
from ..rewiring.steps import LatestStep
from .averages import follow

__all__ = ["LightningRewiring", "ScheduledRewiring", "scalars"]


class _Optimizers:
    """Several optimizers as the one that a rewirer takes."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    @property
    def state(self) -> Mapping[torch.Tensor, Any]:
        # Not a chain of them: a state is a defaultdict, which has an entry for everything that it is asked.
        return {parameter: state for optimizer in self._optimizers for parameter, state in optimizer.state.items()}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]


def scalars(model: nn.Module, report: RewireReport) -> dict[str, float]:
    """What a rewiring did, as numbers for a trainer's log.

    Returns:
        ``rewiring/number`` and ``rewiring/replaced`` (share of all connections), and for each layer
        ``rewiring/NAME/replaced``, ``/density`` and ``/in_degree_std`` (standard deviation of the neurons' in-degrees,
        over M).
    """
    total, replaced = sum(layer.nnz for layer in report), sum(layer.k for layer in report)
    values = {"rewiring/number": float(report.step), "rewiring/replaced": replaced / max(total, 1)}
    for layer in report:
        module: Any = model.get_submodule(layer.name)
        name = f"rewiring/{layer.name or 'layer'}"
        values[f"{name}/replaced"] = layer.k / max(layer.nnz, 1)
        values[f"{name}/density"] = module.density
        values[f"{name}/in_degree_std"] = float(module.in_degrees().double().std(correction=0))
    return values


class ScheduledRewiring:
    """A rewirer that a trainer's callback drives: the callback says what is done, this says what follows.

    Args:
        every_n_steps: rewire after every so many steps of the optimizer;
        every_n_epochs: or after every so many epochs. Exactly one of the two.
        start_after: no rewiring before so many steps or epochs are done (warm-up).
        stop_after: none after so many; None: until the end.
        rewirer: the class, ``dendnorm.SET`` or one that takes (model, optimizer, **options) like it.
        options: what the rewirer takes besides: ``zeta``, ``seed``, ``drop``, ``grow``.

    The trainer's steps are counted, also those that a ``GradScaler`` skipped. A rewiring that is due after a skipped
    one follows the next that is not.

    Raises:
        TypeError, ValueError: an argument that is not as above; names it, what was expected and what came.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        start_after: int = 0,
        stop_after: int | None = None,
        rewirer: type = SET,
        **options: Any,
    ) -> None:
        if (every_n_steps is None) == (every_n_epochs is None):
            raise ValueError(
                "exactly one of every_n_steps and every_n_epochs must be given, got"
                f" every_n_steps={every_n_steps!r} and every_n_epochs={every_n_epochs!r}"
            )
        if {"every", "start", "stop", "model", "optimizer"} & set(options):
            raise TypeError(
                "model, optimizer and every are the trainer's to give: use every_n_steps or every_n_epochs, and"
                " start_after and stop_after"
            )
        self.unit = "epoch" if every_n_steps is None else "step"
        name = f"every_n_{self.unit}s"
        self.every = whole(name, every_n_epochs if every_n_steps is None else every_n_steps, 1)
        self.start_after = whole("start_after", start_after, 0)
        self.stop_after = None if stop_after is None else whole("stop_after", stop_after, 0)
        self.make, self.options = rewirer, options
        self.rewirer: Any = None
        self._latest = 0  # the step or epoch after which the latest rewiring was done
        self._done = 0  # steps or epochs
        self._owed = False  # one was due after a step that was skipped
        self._watch: LatestStep | None = None
        self._saved: Mapping[str, Any] | None = None  # loaded before there is a rewirer

    def due(self, count: int) -> bool:
        """Whether a rewiring follows when so many steps or epochs are done."""
        if count <= max(self.start_after, 0) or (self.stop_after is not None and count > self.stop_after):
            return False
        return count % self.every == 0

    def start(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int, epoch: int
    ) -> dict | None:
        """Training begins, or goes on after so many steps and whole epochs.

        Returns:
            As ``done``: a checkpoint may have been written between the end of a step or an epoch and its rewiring.
        """
        optimizer = optimizers[0] if len(optimizers) == 1 else _Optimizers(optimizers)
        kept = None
        if self.rewirer is not None:  # a second training of the same trainer
            kept = self.rewirer.state_dict()
            self.rewirer.remove()
        by_itself = {"every": None} if "every" in inspect.signature(self.make).parameters else {}
        self.rewirer = self.make(model, optimizer, **by_itself, **self.options)
        if self._watch is not None:
            self._watch.remove()
        self._watch, self._owed = None, False  # what a checkpoint ends with was a step
        if kept is not None:
            self.rewirer.load_state_dict(kept)
        if self._saved is not None:
            saved, self._saved = self._saved, None
            self.load_state_dict(saved)
        if step == 0:
            self._latest = 0  # a training of its own: its steps and epochs are counted anew
        count = epoch if self.unit == "epoch" else step
        values = self.done(self.unit, count) if count else None
        self._watch = LatestStep(optimizer)
        self._observe(count)
        return values

    def done(self, unit: str, count: int) -> dict[str, float] | None:
        """A step of the optimizer ("step") or an epoch ("epoch") is done; rewires if that is due, once for each count.

        Args:
            count: how many are done, over the whole training, resumed or not.

        Returns:
            What is to be logged, or None.
        """
        if unit == "step" and self._watch is not None:
            self._watch.turn()
        if unit == self.unit:
            self._done = count
            self._owed = self._owed or (self.due(count) and count > self._latest)
        elif not self._owed:
            return None
        values = None
        if self._owed and self._made():
            report = self.rewirer.step()
            self._owed, self._latest = False, self._done
            values = scalars(self.rewirer.model, report)
        self._observe(self._done)
        return values

    def _made(self) -> bool:
        """Whether the latest step of the trainer was one of its optimizers. An epoch may have none at all."""
        if self._watch is None or (self.unit == "epoch" and not self._watch.any):
            return True
        return self._watch.made()

    def _observe(self, count: int) -> None:
        """For rules that look at what passes through the layers: in the step, or the epoch, that a rewiring ends."""
        looks_at = [getattr(getattr(self.rewirer, rule, None), "looks_at", ()) for rule in ("drop_rule", "grow_rule")]
        if any(looks_at) and (self._owed or (self.due(count + 1) and count + 1 > self._latest)):
            self.rewirer.observe()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for the same edges to come: plain numbers, which JSON can hold."""
        if self.rewirer is None:
            return dict(self._saved or {"latest": 0, "rewirer": None})
        return {"latest": self._latest, "rewirer": self.rewirer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on as the training that was saved.

        Raises:
            TypeError, ValueError: not what ``state_dict`` gave; nothing has changed then.
        """
        if not isinstance(state_dict, Mapping) or set(state_dict) != {"latest", "rewirer"}:
            given = list(state_dict) if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise ValueError(f"state_dict must be a mapping with the keys ['latest', 'rewirer'], got {given}")
        latest = whole("state_dict['latest']", state_dict["latest"], 0)
        if self.rewirer is None:
            self._saved = dict(state_dict)
            return
        if state_dict["rewirer"] is not None:
            self.rewirer.load_state_dict(state_dict["rewirer"])
        self._latest = latest


class LightningRewiring:
    """Rewires the sparse layers of a ``LightningModule`` on a schedule.

        Trainer(callbacks=[RewiringCallback(every_n_epochs=1, zeta=0.15, start_after=2)])

    Its state is in the trainer's checkpoints, and ``trainer.fit(..., ckpt_path=...)`` goes on with the edges that an
    undisturbed run would have. Each rewiring's numbers (``dendnorm.integrations.core.scalars``) go to the trainer's
    loggers. The module's optimizers must hold every sparse layer; with several of them a layer's state is in one.
    The averages of Lightning's own callbacks (``StochasticWeightAveraging``, ``WeightAveraging`` and
    ``EMAWeightAveraging``) follow each rewiring.

    Args:
        every_n_steps, every_n_epochs, start_after, stop_after, rewirer, options: as for
            ``dendnorm.integrations.core.ScheduledRewiring``; steps are ``trainer.global_step``, steps of the optimizer.

    Raises:
        TypeError, ValueError: as there.
        ImportError: on import of this module, without its package; names the extra.
    """

    def __init__(self, every_n_steps: int | None = None, every_n_epochs: int | None = None, **options: Any) -> None:
        super().__init__()
        self.rewiring = ScheduledRewiring(every_n_steps, every_n_epochs, **options)
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._steps = trainer.global_step
        # An epoch that a checkpoint found between its last batch and its end comes to its end after this.
        done = trainer.global_step, trainer.current_epoch
        self._rewired(trainer, pl_module, self.rewiring.start(pl_module, trainer.optimizers, *done))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        # Batches that are only accumulated end without a step.
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._rewired(trainer, pl_module, self.rewiring.done("step", self._steps))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._rewired(trainer, pl_module, self.rewiring.done("epoch", trainer.current_epoch + 1))

    def state_dict(self) -> dict[str, Any]:
        return self.rewiring.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rewiring.load_state_dict(state_dict)

    def _rewired(self, trainer: Any, pl_module: Any, values: dict[str, float] | None) -> None:
        if values is None:
            return
        for callback in trainer.callbacks:
            _follow(callback, pl_module, self.rewiring.rewirer.report)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)


def _follow(callback: Any, model: nn.Module, report: RewireReport) -> None:
    """Let the average that a callback of Lightning's keeps, if it keeps one, have the connections of the model."""
    averaged = getattr(callback, "_average_model", None)
    if not isinstance(averaged, nn.Module):
        return
    begun = getattr(averaged if isinstance(averaged, AveragedModel) else callback, "n_averaged", None)
    if begun is not None and int(begun) > 0:
        follow(averaged, model, report)
    else:  # the first update copies parameters
        inner = averaged.module if isinstance(averaged, AveragedModel) else averaged
        inner.load_state_dict(model.state_dict())
