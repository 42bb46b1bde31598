"""What a run keeps while it trains: the best weights so far, and the state that an interrupted run goes on from."""

import logging
import math
import secrets
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from robustft.common import signals
from robustft.common.errors import UserError
from robustft.common.files import atomic, save_tensors
from robustft.common.processes import is_first_process
from robustft.common.wording import first_line
from robustft.models.archives import refuse_swollen
from robustft.models.files import BEST
from robustft.models.lora import merged_state
from robustft.models.text import own_names, saved_names
from robustft.models.weights import describe
from robustft.training import lightning_private

log = logging.getLogger(__name__)

LAST = "last.ckpt"
SCORE = "holdout/top1"


class Interrupted(Exception):
    """Training was asked to stop and has written its state."""


class KeepBest(Callback):
    """Keeps the weights with the best hold-out accuracy so far in ``best.safetensors``.

    The file itself says how good it is, of which run and step, and how to rebuild the model. The checkpoint remembers
    which step was scored last, and which file belongs to it.

    Args:
        classes: names of the classes in label order.
    """

    def __init__(self, folder: Path, resume: bool, classes: Sequence[str]) -> None:
        self.path, self.score, self.classes = folder / BEST, -math.inf, list(classes)
        self.scored_at = 0  # the last step with a score
        self.run = secrets.token_hex(8)  # is in both files, so that neither is taken for another run's
        if resume:
            self.score = float(_metadata(self.path).get(SCORE, -math.inf))
        elif is_first_process():
            self.path.unlink(missing_ok=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = trainer.callback_metrics.get(SCORE)
        if trainer.sanity_checking or score is None:
            return
        self.scored_at = max(self.scored_at, trainer.global_step)
        if not float(score) > self.score:
            return
        self.score = float(score)
        if trainer.is_global_zero:
            method: Any = pl_module
            model = method.classifier()
            metadata = {SCORE: repr(self.score), "run": self.run, "step": str(trainer.global_step)}
            if hasattr(model, "architecture"):  # not a probe, which is a head alone
                metadata |= describe(model, self.classes)
            save_tensors(self.path, saved_names(merged_state(model)), metadata)

    def state_dict(self) -> dict[str, Any]:
        return {"scored_at": self.scored_at, "score": self.score, "run": self.run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scored_at = max(self.scored_at, state_dict["scored_at"])
        self.run = state_dict.get("run", self.run)

    def restore(self, model: nn.Module) -> None:
        """Give ``model`` the best weights; without a score it keeps its own, the last.

        Raises:
            UserError: the file is no longer there.
        """
        if self.score == -math.inf:
            return
        if not self.path.is_file():
            raise UserError(f"{self.path} has been removed while the run was at work: start the run again")
        state = load_file(self.path)
        model.load_state_dict(own_names(state) if hasattr(model, "architecture") else state)


class _Direct(TorchCheckpointIO):
    """Writes checkpoints where they belong. Lightning goes by way of the system's temporary folder, often another
    disk, so that nothing is replaced atomically, and a full disk stays full of the half-written file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic(Path(path)) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


class KeepState(Callback):
    """Writes ``last.ckpt`` every ``minutes``, at the end of each epoch, and when asked to stop.

    Ctrl-C, SIGTERM and SIGHUP stop the run at the end of the optimiser step; a second Ctrl-C stops it at once. A stop
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = _Direct()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in signals.stopping()}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not between_steps(trainer):
            return
        evaluation_next = lightning_private.validates_next(trainer)
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
        asked = self._asked_to_stop(trainer)  # since the last state was written
        self._restore_handlers()
        if asked:
            raise Interrupted(f"interrupted after step {trainer.global_step}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["evaluation_due"] = self._evaluation_due
        checkpoint["threads"] = torch.get_num_threads()
        if self._evaluation_due:
            lightning_private.describe_as_evaluated(checkpoint, _epoch_is_over(trainer))

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
            trainer.save_checkpoint(self.path)
        self.last_saved = time.monotonic()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        signals.say("\nstopping after this step ...\n")

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
        best: what ``KeepBest`` knew then; ``score`` and ``run`` are lacking in checkpoints of earlier versions.
        threads: with which it was computed on the CPU.
    """

    path: Path
    step: int
    micro_batch: int
    evaluation_due: bool
    best: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None


def read_position(folder: Path) -> Position:
    """The position of ``folder/last.ckpt``.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = folder / LAST
    try:
        refuse_swollen(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        micro_batch = lightning_private.next_micro_batch(state)
        best = state["callbacks"].get("KeepBest", {})
        if "recipe" not in state:
            raise UserError(
                f"{path} was left by an earlier version of robustft, whose runs this one cannot go on with: remove it"
                " to start the run again, or finish it with that version."
            )
        return Position(path, state["global_step"], micro_batch, state["evaluation_due"], best, state.get("threads"))
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{path} cannot be read ({first_line(error)}). Start the run again without resume=.") from error


def check_best(position: Position) -> None:
    """Refuse to go on without the best weights so far: the run would end with others.

    Raises:
        UserError: ``best.safetensors`` is not beside ``last.ckpt``, or it is another run's or an older one.
    """
    folder, expected = position.path.parent, position.best
    path = folder / BEST
    advice = f"Copy the {BEST} that belongs to {LAST} into {folder}, or start the run again without resume="
    scored_at, score, run = expected.get("scored_at", 0), expected.get("score", -math.inf), expected.get("run")
    if not path.is_file():
        if scored_at or score > -math.inf:
            how_good = f" (hold-out {score:.1%})" if score > -math.inf else ""
            raise UserError(f"{path} is missing: the best model up to step {scored_at}{how_good}. {advice}")
        return
    found = _metadata(path)
    # A better one of the same run is right: the run was killed between two saves and comes to it again.
    try:
        its_score = float(found.get(SCORE, -math.inf))
    except ValueError:  # the file is not as a run left it
        its_score = -math.inf
    if found.get("run") != run or its_score < score:
        raise UserError(f"{path} is not the best model of the run that {LAST} belongs to. {advice}")


def _metadata(path: Path) -> dict[str, str]:
    """Of a safetensors file; empty where there is none.

    Raises:
        UserError: the file cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}). Start the run again without resume=") from error


def between_steps(trainer: Trainer) -> bool:
    """Whether the last micro-batch ended an optimiser step: only then is the state whole."""
    micro_batches = lightning_private.micro_batches_done(trainer)
    return micro_batches % trainer.accumulate_grad_batches == 0 or micro_batches == trainer.num_training_batches


def logs_at(trainer: Trainer, step: int) -> bool:
    """Whether ``step`` is one of those, every ``log_every_n_steps``, at which waiting for the device is all right."""
    return step % vars(trainer)["log_every_n_steps"] == 0


def _epoch_is_over(trainer: Trainer) -> bool:
    done = lightning_private.micro_batches_done(trainer)
    return lightning_private.is_last_batch(trainer) or done == trainer.num_training_batches


def _fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
