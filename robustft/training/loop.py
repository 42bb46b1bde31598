"""Training under Lightning: one loop for every method that trains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer

from robustft.common.errors import UserError
from robustft.common.memory import EVALUATION, enough_memory, training_advice
from robustft.common.wording import counted
from robustft.data.datamodule import Devices, RobustnessData
from robustft.data.sets import EvaluationSet
from robustft.models.classifier import Classifier
from robustft.training.callbacks import Speed, StopOnNonFinite
from robustft.training.checkpoints import Interrupted, KeepBest, KeepState, Position, read_position
from robustft.training.lightning_private import count_epochs_once
from robustft.training.method import Method
from robustft.training.recipe import Training
from robustft.training.tracking import count_steps
from robustft.training.trainer import make_trainer


@dataclass(frozen=True)
class Trained:
    """What training leaves: the student with its selected weights, and how fast it went (images/s).

    Attributes:
        earlier_s: how long the interrupted sessions of the run took.
        teacher: one that has moved, as it is in the end.
    """

    model: Classifier
    images_per_s: float | None = None
    earlier_s: float = 0.0
    teacher: Classifier | None = None


def train(method: Method, training: Training) -> Trained:
    """Train by ``method``; select the epoch with the best hold-out accuracy (the last one without a score).

    Raises:
        UserError: a loss that is not finite, a batch that cannot be split, a resume with another schedule, memory
            that does not suffice.
        KeyboardInterrupt: the run was interrupted; its message says how to resume.
    """
    training = method.prepare(training)
    data, folder, loggers = training.data, training.folder, list(training.loggers)
    guard, best = StopOnNonFinite(), KeepBest(folder, training.resume, data.class_names)
    state = KeepState(folder, training.save_minutes, keep=bool(training.trainer["enable_checkpointing"]))
    lightning: Any = make_trainer(training.trainer, folder, [guard, best, state], loggers)
    data.devices = Devices.of(lightning)
    data.setup("fit")
    steps = planned_steps(data, lightning)
    lightning.log_every_n_steps = min(lightning.log_every_n_steps, steps)
    speed = Speed(lambda: _describe(data, lightning, steps), data.batch_size, steps, training.started)
    lightning.callbacks.insert(0, speed)
    if training.watch is not None:
        lightning.callbacks.insert(1, training.watch(steps, speed.skip))
    sets = data.sets if data.validate == "all" else [s for s in data.sets if s.name == "holdout"]
    settle(method, training, sets, steps)
    method.train()
    position = read_position(folder) if training.resume else None
    before = 0 if position is None else position.step
    count_steps(loggers, lambda: max(lightning.global_step, before))
    if position is not None:
        _resume(lightning, method, data, position)
        if position.evaluation_due:
            best.scored_at = position.step
    try:
        checkpoint = None if position is None else position.path
        with enough_memory("training", *training_advice(lightning, method.student, data.batch_size)):
            lightning.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Interrupted as stop:
        raise KeyboardInterrupt(f"{stop} of {steps}") from stop
    guard.check()
    if best.score > -math.inf and best.scored_at != lightning.global_step == steps:
        # Lightning does not evaluate when the steps end within an epoch: the last weights are candidates too.
        with enough_memory("evaluating", EVALUATION):
            lightning.validate(method, [data.eval_loader(s) for s in sets], verbose=False)
    done = max(lightning.global_step, before)
    count_steps(loggers, lambda: done)  # lets go of the trainer
    lightning.strategy.barrier()  # the first process wrote the best weights, all read them
    method.parts.finish(method.student)
    best.restore(method.classifier())
    model = method.result()
    if not all(bool(value.isfinite().all()) for value in model.parameters()):
        raise UserError("training left weights that are not finite. Lower optimizer.lr or beta.")
    moved = method.teacher if method.teacher_moves else None
    return Trained(model.eval(), speed.images_per_s, speed.earlier_s, moved)


def settle(method: Method, training: Training, sets: Sequence[EvaluationSet], steps: int) -> None:
    """Tell ``method`` what it is evaluated on while it trains, and how long and by which recipe that is."""
    method.evaluate_on(sets)
    method.recipe, method.steps, method.seed = training.recipe, steps, training.seed
    method.constraints = training.constraints
    method.keep_average(training.moving, steps)  # of the model as it is before low-rank updates
    method.parts = training.parts
    method.parts.start(method.student, training.seed)


def planned_steps(data: RobustnessData, trainer: Trainer) -> int:
    """Optimiser steps of the whole training, known without making a loader.

    Raises:
        UserError: there is no end to the training, or it has no step.
    """
    per_epoch = data.train_images // data.batch_size
    limit = trainer.limit_train_batches
    if isinstance(limit, int) and not isinstance(limit, bool):
        per_epoch = min(per_epoch, math.ceil(limit / trainer.accumulate_grad_batches))
    elif isinstance(limit, float):
        per_epoch = math.ceil(
            int(per_epoch * trainer.accumulate_grad_batches * limit) / trainer.accumulate_grad_batches
        )
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else None
    limits = [epochs * per_epoch] if epochs is not None else []
    limits += [trainer.max_steps] if trainer.max_steps != -1 else []
    if not limits:
        raise UserError("give trainer.max_epochs or trainer.max_steps: the learning-rate schedule needs an end.")
    if min(limits) < 1:
        batches = data.train_images // data.batch_size * trainer.accumulate_grad_batches
        if batches:
            raise UserError(
                f"trainer.limit_train_batches={limit} of {batches} batches: there would be no step. Raise it"
            )
        raise UserError(
            f"data.batch_size={data.batch_size} is more than the {counted(data.train_images, 'training image')}:"
            " there would be no step. Give a smaller data.batch_size"
        )
    return min(limits)


def check_limits(data: RobustnessData, trainer: Trainer, training: bool) -> None:
    """Refuse limits under which nothing would be trained or evaluated, or that Lightning refuses later.

    Raises:
        UserError: says what is there.
    """
    world = trainer.world_size
    share = trainer.limit_val_batches
    for evaluation_set in data.sets:
        batches = math.ceil(len(evaluation_set.dataset) / (data.eval_batch_size * world))
        if isinstance(share, float) and int(batches * share) < 1:
            raise UserError(
                f"trainer.limit_val_batches={share} of the {counted(batches, 'batch', 'batches')} of"
                f" {evaluation_set.name} is none: give more, or a number of batches, or limit images by"
                " data.eval_images"
            )
    if not training:
        return
    planned_steps(data, trainer)
    batches = data.train_images // data.batch_size * trainer.accumulate_grad_batches
    limit = trainer.limit_train_batches
    if isinstance(limit, float):
        batches = int(batches * limit)
    elif isinstance(limit, int):
        batches = min(batches, limit)
    interval = trainer.val_check_interval
    scored = data.validate == "all" or data.holdout != 0
    if scored and isinstance(interval, int) and not isinstance(interval, bool) and interval > batches:
        raise UserError(
            f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch: give at most so"
            " many, or a fraction, or trainer.check_val_every_n_epoch"
        )


def _resume(trainer: Trainer, method: Method, data: RobustnessData, position: Position) -> None:
    """Tell the data where to go on, and make up for the evaluation that the run was stopped before."""
    data.resume_at(position.micro_batch)
    count_epochs_once(trainer)
    if position.evaluation_due and method.sets:
        loaders = [data.eval_loader(evaluation_set) for evaluation_set in method.sets]
        trainer.validate(method, loaders, ckpt_path=position.path, weights_only=True, verbose=False)


def _describe(data: RobustnessData, trainer: Trainer, steps: int) -> str:
    devices = counted(trainer.world_size, f"{trainer.strategy.root_device.type} device")
    epochs = f"{steps * data.batch_size / max(1, data.train_images):.3g}"
    return (
        f"training: {counted(steps, 'step')} of {counted(data.batch_size, 'image')}"
        f" ({counted(data.train_images, 'image')} in all, {epochs} {'epoch' if epochs == '1' else 'epochs'}) on"
        f" {devices}, {trainer.precision}"
    )
