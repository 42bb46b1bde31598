"""What goes on around the training step: a check on the loss, speed, progress."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from torch import Tensor

from robustft.common.errors import UserError
from robustft.common.wording import counted
from robustft.training.checkpoints import between_steps, logs_at

log = logging.getLogger(__name__)


class StopOnNonFinite(Callback):
    """Stops the run when the loss is no longer finite, and keeps such a state out of every checkpoint.

    On an accelerator the check waits for the device only every ``log_every_n_steps``; the step that is named is the
    first bad one all the same.

    Raises:
        UserError: names the step and the terms of the loss.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.terms: Tensor | None = None  # of the first bad micro-batch, else of the last one
        self.step: Tensor | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        measured: dict[str, Tensor] = vars(pl_module)["terms"]  # of a Method
        if self.names != list(measured):  # a method may have other terms now and then
            self.check()
            self.names, self.terms = list(measured), None
        terms = torch.stack([measured[name] for name in self.names]).float()
        step = torch.full_like(terms[0], trainer.global_step)
        if self.terms is None or self.step is None:
            self.terms, self.step = terms, step
        else:
            was_fine = self.terms.isfinite().all()
            self.terms = torch.where(was_fine, terms, self.terms)
            self.step = torch.where(was_fine, step, self.step)
        if terms.device.type == "cpu" or (between_steps(trainer) and logs_at(trainer, trainer.global_step)):
            self.check()

    def on_save_checkpoint(self, *_: Any) -> None:
        self.check()

    def check(self) -> None:
        """Raise where the last terms of the loss are not finite; waits for the device."""
        if self.terms is None or self.step is None or bool(self.terms.isfinite().all()):
            return
        shown = ", ".join(f"{name} {value:.4g}" for name, value in zip(self.names, self.terms.tolist(), strict=True))
        raise UserError(
            f"the loss is no longer finite at step {int(self.step)}: {shown}. "
            "Lower optimizer.lr or beta, or use trainer.precision=32-true."
        )


class Speed(Callback):
    """Training images per second over all devices, evaluations and the first step left out.

    Says what is coming: images, steps and devices at the start, the expected time once the speed is known. Remembers
    how long the run took in all, over interruptions.
    """

    PROBE = 3  # optimiser steps after which the expected time is said

    def __init__(
        self, describe: Callable[[], str], images_per_step: int, steps: int, started: float | None = None
    ) -> None:
        self.describe, self.images_per_step, self.steps = describe, images_per_step, steps
        self.timed_steps, self.seconds = 0, 0.0
        self.earlier = (0, 0.0)  # steps and seconds of the sessions before this one
        self.started = time.perf_counter() if started is None else started
        self.earlier_s = 0.0  # the sessions before this one in whole, evaluations and all
        self.since: float | None = None

    @property
    def images_per_s(self) -> float | None:
        """Over all sessions of the run."""
        steps, seconds = self.earlier[0] + self.timed_steps, self.earlier[1] + self.seconds
        return steps * self.images_per_step / seconds if seconds else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log.info(self.describe())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not between_steps(trainer):
            return
        now = time.perf_counter()
        if self.since is not None:
            self.seconds += now - self.since
            self.timed_steps += 1
            rate = torch.tensor(self._rate())  # stays on the CPU: a copy to a GPU would make the host wait for it
            pl_module.log("train/images_per_s", rate, prog_bar=True)
        self.since = now
        if self.timed_steps == self.PROBE and self.steps > 10 * self.PROBE:
            left = (self.steps - trainer.global_step) * self.seconds / self.timed_steps
            log.info(f"about {duration(left)} of training to go at {self._rate():,.0f} images/s")

    def on_validation_start(self, *_: Any) -> None:
        self.skip()

    def skip(self) -> None:
        """Leave out what has happened since the last step."""
        self.since = None

    def _rate(self) -> float:
        return self.timed_steps * self.images_per_step / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, float]:
        steps, seconds = self.earlier
        wall = self.earlier_s + time.perf_counter() - self.started
        return {"steps": steps + self.timed_steps, "seconds": seconds + self.seconds, "wall": wall}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.earlier = int(state_dict["steps"]), state_dict["seconds"]
        self.earlier_s = state_dict["wall"]


def duration(seconds: float) -> str:
    """Write a time span as people say it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class ProgressLines(Callback):
    """Progress where the output is no terminal (a log file): one line now and then instead of a bar."""

    def __init__(self, seconds: float = 20) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if time.monotonic() - self.last >= self.seconds:
            self._say(trainer, f"step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say(trainer, f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, step {trainer.global_step}")

    def on_validation_batch_end(
        self, trainer: Trainer, _module: Any, _outputs: Any, _batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        if time.monotonic() - self.last >= self.seconds and trainer.is_global_zero:
            self.last = time.monotonic()
            loaders = trainer.num_val_batches if not trainer.sanity_checking else [0]
            done, total = sum(loaders[:dataloader_idx]) + index + 1, sum(loaders)
            log.info(f"evaluation: {done} of {counted(int(total), 'batch', 'batches')}")

    def _say(self, trainer: Trainer, where: str) -> None:
        self.last = time.monotonic()
        if trainer.is_global_zero:
            metrics = {
                k.removeprefix("train/"): float(v) for k, v in trainer.progress_bar_metrics.items() if k != "v_num"
            }
            log.info(f"{where}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))


def progress() -> Callback:
    """Make a bar on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        return ProgressLines()
    theme = RichProgressBarTheme(metrics_format=".3g")
    return RichProgressBar(refresh_rate=20, leave=False, theme=theme)
