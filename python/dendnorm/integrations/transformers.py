"""Rewiring under the Trainer of Hugging Face (the package transformers)."""

from __future__ import annotations

import json
import weakref
from typing import Any

from .._extras import require
from .core import ScheduledRewiring

_TrainerCallback: Any = require("transformers", "transformers").TrainerCallback
_ExportableState: Any = require("transformers.trainer_callback", "transformers").ExportableState

__all__ = ["RewiringCallback"]


_NEARLY = 1e-6  # of an epoch, which trainers count in fractions


def _whole_epochs(state: Any) -> int:
    """How many epochs are done: one is where its last step is, and before that it is not."""
    epoch = state.epoch or 0
    return round(epoch) if abs(epoch - round(epoch)) < _NEARLY else int(epoch)


class RewiringCallback(_TrainerCallback, _ExportableState):
    """Rewires the sparse layers of a ``transformers.Trainer``'s model on a schedule.

        callback = RewiringCallback(every_n_steps=100, zeta=0.15, start_after=500)
        trainer = Trainer(model, args, ..., callbacks=[callback])
        callback.log_to(trainer)
        trainer.train()

    Its state is in the trainer's checkpoints, and ``trainer.train(resume_from_checkpoint=True)`` goes on with the edges
    that an undisturbed run would have. Each rewiring's numbers (``dendnorm.integrations.core.scalars``) are in
    ``trainer.state.log_history``, and with ``log_to`` in the trainer's own loggers, TensorBoard for one.

    Args:
        every_n_steps, every_n_epochs, start_after, stop_after, rewirer, options: as for
            ``dendnorm.integrations.core.ScheduledRewiring``; steps are steps of the optimizer.

    Raises:
        TypeError, ValueError: as there; and on resuming with several callbacks, other options than were saved.
        ImportError: on import of this module, without the package transformers; names the extra.
    """

    def __init__(self, every_n_steps: int | None = None, every_n_epochs: int | None = None, **options: Any) -> None:
        self.rewiring = ScheduledRewiring(every_n_steps, every_n_epochs, **options)
        self._arguments = {"every_n_steps": every_n_steps, "every_n_epochs": every_n_epochs, **options}
        # Callables and rules by their names: to tell several callbacks apart in a checkpoint.
        self._options = json.dumps(self._arguments, default=lambda value: getattr(value, "__qualname__", repr(value)))
        self._trainer: Any = lambda: None

    def log_to(self, trainer: Any) -> None:
        """Log through this trainer, and so through all its loggers."""
        self._trainer = weakref.ref(trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any):
        # A training from the start finds what the callbacks were made with there, and nothing to go on with.
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        if saved is not None:
            self.saved = self._own(saved if isinstance(saved, list) else [saved])
        self._log(state, self.rewiring.start(model, [optimizer], state.global_step, _whole_epochs(state)))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._log(state, self.rewiring.done("step", state.global_step))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        whole = _whole_epochs(state)
        # A stream of unknown length ends its epoch anywhere; a training that ends may do so within one.
        ended = state.epoch > whole + _NEARLY and not control.should_training_stop
        self._log(state, self.rewiring.done("epoch", whole + ended))

    def _own(self, saved: list[dict[str, Any]]) -> dict[str, Any]:
        """What this callback wrote: the trainer keeps a list for several, to which it adds at every checkpoint."""
        states = [entry["attributes"]["saved"] for entry in saved]
        matching = [state for state in states if state["options"] == self._options] if len(states) > 1 else states
        if not matching:
            raise ValueError(
                "the RewiringCallbacks of one trainer must resume with the options that they were saved with, got"
                f" {self._options}, and in the checkpoint {sorted({state['options'] for state in states})}"
            )
        return matching[-1]

    def _log(self, state: Any, values: dict[str, float] | None) -> None:
        if values is None:
            return
        trainer = self._trainer()
        if trainer is not None:
            trainer.log(values)
        else:
            state.log_history.append({**values, "epoch": state.epoch, "step": state.global_step})

    @property
    def saved(self) -> dict[str, Any]:
        return self.rewiring.state_dict() | {"options": self._options}

    @saved.setter
    def saved(self, state: dict[str, Any]) -> None:
        self.rewiring.load_state_dict({key: value for key, value in state.items() if key != "options"})

    def state(self) -> dict[str, Any]:
        """What the trainer writes into its checkpoint."""
        try:
            json.dumps(self._arguments)
            arguments = self._arguments
        except TypeError:
            arguments = None  # a callable or a rule: only the attributes can be restored
        return {"args": arguments, "attributes": {"saved": self.saved}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RewiringCallback:
        """What ``TrainingArguments(restore_callback_states_from_checkpoint=True)`` makes a callback with.

        Raises:
            ValueError: options that a checkpoint does not hold.
        """
        if state["args"] is None:
            raise ValueError(
                "restore_callback_states_from_checkpoint must be False for a RewiringCallback whose options are objects"
                " of Python; its state is restored all the same"
            )
        callback = cls(**state["args"])
        callback.saved = state["attributes"]["saved"]
        return callback
