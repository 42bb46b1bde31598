"""What a run keeps while it trains: the best weights so far, and the state that an interrupted run goes on from."""

import logging
import math
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from robustft.errors import UserError
from robustft.files import save_tensors

log = logging.getLogger(__name__)

LAST = "last.ckpt"
BEST = "best.safetensors"
SCORE = "holdout/top1"


class Interrupted(Exception):
    """Training was asked to stop and has written its state."""


class KeepBest(Callback):
    """Keeps the weights with the best hold-out accuracy so far in ``best.safetensors``.

    The file itself says how good it is; the checkpoint remembers which step was scored last.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.path, self.score = folder / BEST, -math.inf
        self.scored_at = 0  # the last step with a score
        if not resume:
            self.path.unlink(missing_ok=True)
        elif self.path.is_file():
            with safe_open(self.path, "pt") as file:
                self.score = float(file.metadata()[SCORE])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = trainer.callback_metrics.get(SCORE)
        if trainer.sanity_checking or score is None:
            return
        self.scored_at = max(self.scored_at, trainer.global_step)
        if not float(score) > self.score:
            return
        self.score = float(score)
        if trainer.is_global_zero:
            model = pl_module.get_submodule("model")
            save_tensors(self.path, model.state_dict(), {SCORE: repr(self.score)})

    def state_dict(self) -> dict[str, int]:
        return {"scored_at": self.scored_at}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.scored_at = max(self.scored_at, state_dict["scored_at"])

    def restore(self, model: nn.Module) -> None:
        """Give ``model`` the best weights; without a score it keeps its own, the last."""
        if self.path.is_file():
            model.load_state_dict(load_file(self.path))


class KeepState(Callback):
    """Writes ``last.ckpt`` every ``minutes``, at the end of each epoch, and when asked to stop.

    Ctrl-C and SIGTERM stop the run at the end of the optimiser step; a second Ctrl-C stops it at once. A stop
    before the end of an evaluation leaves that evaluation to whoever resumes: see ``Position.evaluation_due``.

    Raises:
        Interrupted: after the state is written.
    """

    def __init__(self, folder: Path, minutes: float, keep: bool = True) -> None:
        self.path, self.seconds, self.keep = folder / LAST, minutes * 60, keep
        self.received: int | None = None
        self.last_saved = time.monotonic()
        self._evaluation_due = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._previous = {name: signal.signal(name, self._receive) for name in (signal.SIGINT, signal.SIGTERM)}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not between_steps(trainer):
            return
        loop: Any = trainer.fit_loop
        evaluation_next = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if _epoch_is_over(trainer) and not evaluation_next:
            return  # on_train_epoch_end follows at once
        if self._asked_to_stop(trainer, logs_at(trainer, trainer.global_step)):
            self._stop(trainer, evaluation_next)
        if not evaluation_next and self._is_time(trainer, logs_at(trainer, trainer.global_step)):
            self._save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Processes evaluate different numbers of batches, so several cannot agree here.
        if _fitting(trainer) and trainer.world_size == 1 and self.received is not None and between_steps(trainer):
            self._stop(trainer, evaluation_due=True)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if not _fitting(trainer) or not between_steps(trainer) or _epoch_is_over(trainer):
            return  # at the end of an epoch on_train_epoch_end follows
        if self._asked_to_stop(trainer):
            self._stop(trainer)
        if self._is_time(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._asked_to_stop(trainer):
            self._stop(trainer)
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Where an evaluation is due, the loops are described as they will be after it: Lightning skips it."""
        checkpoint["evaluation_due"] = self._evaluation_due
        if not self._evaluation_due:
            return
        loops = checkpoint["loops"]["fit_loop"]
        batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
        for count in ("total", "current"):
            batches[count]["completed"] = batches[count]["processed"]
            loops["epoch_loop.val_loop.batch_progress"][count] = dict.fromkeys(batches[count], 0)
        if _epoch_is_over(trainer):
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
            for count in ("total", "current"):
                epochs[count]["processed"] += 1

    def _asked_to_stop(self, trainer: Trainer, agree: bool = True) -> bool:
        """Whether a signal came in, to any of the processes; they all wait for each other to ``agree``."""
        if trainer.world_size == 1:
            return self.received is not None
        return agree and trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)

    def _stop(self, trainer: Trainer, evaluation_due: bool = False) -> None:
        self._evaluation_due = evaluation_due
        self._save(trainer)
        self._restore_handlers()
        raise Interrupted(f"interrupted after step {trainer.global_step}")

    def _is_time(self, trainer: Trainer, agree: bool = True) -> bool:
        """Whether to save now; as every process has to take part, they wait for each other to ``agree``."""
        due = time.monotonic() - self.last_saved >= self.seconds
        if trainer.world_size == 1:
            return due
        return agree and trainer.strategy.reduce_boolean_decision(due, all=False)

    def _save(self, trainer: Trainer) -> None:
        if self.keep:
            # Lightning writes by way of the system's temporary folder, often another disk: no atomic replacement.
            partial = self.path.with_name(f"{LAST}.partial")
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                os.replace(partial, self.path)
        self.last_saved = time.monotonic()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        os.write(2, b"\nstopping after this step ...\n")  # log and print are not safe in a signal handler

    def _restore_handlers(self) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)
        self._previous = {}


@dataclass(frozen=True)
class Position:
    """Where in the training a ``last.ckpt`` stands.

    Attributes:
        step: optimiser steps that are done.
        micro_batch: where its epoch goes on (for ``RobustnessData.resume_at``).
        evaluation_due: the run was stopped before the end of an evaluation, which has to be made up for.
    """

    path: Path
    step: int
    micro_batch: int
    evaluation_due: bool


def read_position(folder: Path) -> Position:
    """The position of ``folder/last.ckpt``.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = folder / LAST
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        micro_batch = 0 if progress["is_last_batch"] else progress["current"]["ready"]
        return Position(path, state["global_step"], micro_batch, state["evaluation_due"])
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}). Start the run again without resume=.") from error


def between_steps(trainer: Trainer) -> bool:
    """Whether the last micro-batch ended an optimiser step: only then is the state whole."""
    micro_batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return micro_batches % trainer.accumulate_grad_batches == 0 or micro_batches == trainer.num_training_batches


def logs_at(trainer: Trainer, step: int) -> bool:
    """Whether ``step`` is one of those, every ``log_every_n_steps``, at which waiting for the device is all right."""
    return step % vars(trainer)["log_every_n_steps"] == 0


def _epoch_is_over(trainer: Trainer) -> bool:
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready == trainer.num_training_batches


def _fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
