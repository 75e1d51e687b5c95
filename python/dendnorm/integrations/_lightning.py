"""The callback for Lightning, which exists under two names with classes of their own."""

from __future__ import annotations

from typing import Any

from .core import ScheduledRewiring

__all__ = ["Rewiring"]


class Rewiring:
    """Rewires the sparse layers of a ``LightningModule`` on a schedule.

        Trainer(callbacks=[RewiringCallback(every_n_epochs=1, zeta=0.15, start_after=2)])

    Its state is in the trainer's checkpoints, and ``trainer.fit(..., ckpt_path=...)`` goes on with the edges that an
    undisturbed run would have. Each rewiring's numbers (``dendnorm.integrations.core.scalars``) go to the trainer's
    loggers. The module's optimizers must hold every sparse layer; with several of them a layer's state is in one.

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
        self._log(trainer, self.rewiring.start(pl_module, trainer.optimizers, *done))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        # Batches that are only accumulated end without a step.
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._log(trainer, self.rewiring.done("step", self._steps))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._log(trainer, self.rewiring.done("epoch", trainer.current_epoch + 1))

    def state_dict(self) -> dict[str, Any]:
        return self.rewiring.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rewiring.load_state_dict(state_dict)

    def _log(self, trainer: Any, values: dict[str, float] | None) -> None:
        if values is not None:
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
