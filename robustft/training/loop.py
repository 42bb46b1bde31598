"""Training under Lightning: one loop for every method that trains."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from robustft.common.errors import UserError
from robustft.common.memory import EVALUATION, enough_memory, training_advice
from robustft.counterfactual.distillation import Distillation
from robustft.data.datamodule import RobustnessData
from robustft.models.classifier import Classifier
from robustft.training.callbacks import Speed, StopOnNonFinite, progress
from robustft.training.checkpoints import Interrupted, KeepBest, KeepState, Position, read_position
from robustft.training.finetuner import Finetuner, Schedule
from robustft.training.tracking import count_steps

log = logging.getLogger(__name__)

AUTO = "auto"


@dataclass(frozen=True)
class Trained:
    """What training leaves: the student with its selected weights, and how fast it went (images/s).

    Attributes:
        earlier_s: how long the interrupted sessions of the run took.
    """

    model: Classifier
    images_per_s: float | None = None
    earlier_s: float = 0.0


def train(
    student: Classifier,
    data: RobustnessData,
    *,
    folder: Path,
    trainer: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    distillation: Distillation | None = None,
    loggers: list[Logger] | None = None,
    seed: int = 0,
    resume: bool = False,
    started: float | None = None,
    save_minutes: float = 10,
    watch: Callable[[int, Callable[[], None]], Callback] | None = None,
) -> Trained:
    """Fine-tune ``student``; select the epoch with the best hold-out accuracy (the last one without a score).

    Args:
        trainer: arguments of Lightning's Trainer.
        optimizer: lr, weight_decay, warmup, beta2, max_momentum, base_momentum.
        resume: go on from ``folder/last.ckpt``.
        started: when this session of the run began, of ``time.perf_counter``; None: now.
        save_minutes: how often ``last.ckpt`` is written, besides the ends of epochs.
        watch: makes one more callback, given the number of optimiser steps and what to call after work that is no
            training, so that it does not count as such.

    Raises:
        UserError: a loss that is not finite, a batch that cannot be split, a resume with another schedule, memory
            that does not suffice.
        KeyboardInterrupt: the run was interrupted; its message says how to resume.
    """
    guard, best = StopOnNonFinite(), KeepBest(folder, resume, data.class_names)
    state = KeepState(folder, save_minutes, keep=bool(trainer["enable_checkpointing"]))
    lightning: Any = make_trainer(trainer, folder, [guard, best, state], loggers)
    data.trainer = lightning
    data.setup("fit")
    steps = planned_steps(data, lightning)
    lightning.log_every_n_steps = min(lightning.log_every_n_steps, steps)
    speed = Speed(lambda: _describe(data, lightning, steps), data.batch_size, steps, started)
    lightning.callbacks.insert(0, speed)
    if watch is not None:
        lightning.callbacks.insert(1, watch(steps, speed.skip))
    sets = data.sets if data.validate == "all" else [s for s in data.sets if s.name == "holdout"]
    schedule = Schedule(**optimizer, steps=steps)
    finetuner = Finetuner(student, sets, schedule, distillation, seed)
    student.train()
    position = read_position(folder) if resume else None
    before = 0 if position is None else position.step
    count_steps(loggers or [], lambda: max(lightning.global_step, before))
    if position is not None:
        _resume(lightning, finetuner, data, position)
        if position.evaluation_due:
            best.scored_at = position.step
    try:
        checkpoint = None if position is None else position.path
        with enough_memory("training", *training_advice(lightning, student, data.batch_size)):
            lightning.fit(finetuner, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Interrupted as stop:
        raise KeyboardInterrupt(f"{stop} of {steps}") from stop
    guard.check()
    if best.score > -math.inf and best.scored_at != lightning.global_step == steps:
        # Lightning does not evaluate when the steps end within an epoch: the last weights are candidates too.
        with enough_memory("evaluating", EVALUATION):
            lightning.validate(finetuner, [data.eval_loader(s) for s in sets], verbose=False)
    done = max(lightning.global_step, before)
    count_steps(loggers or [], lambda: done)  # lets go of the trainer
    lightning.strategy.barrier()  # the first process wrote the best weights, all read them
    best.restore(student)
    if not all(bool(value.isfinite().all()) for value in student.parameters()):
        raise UserError("training left weights that are not finite. Lower optimizer.lr or beta.")
    return Trained(student.eval(), speed.images_per_s, speed.earlier_s)


def make_trainer(
    options: Mapping[str, Any],
    folder: Path,
    callbacks: Sequence[Callback] = (),
    loggers: list[Logger] | None = None,
) -> Trainer:
    """Lightning's Trainer with the product's loggers, callbacks and folder.

    Raises:
        UserError: Lightning does not take the options, or not on this machine.
    """
    bar = [progress()] if options["enable_progress_bar"] else []
    accumulate = options.get("accumulate_grad_batches", 1)
    chosen = dict(options) | {
        "precision": resolve_precision(options["precision"], options["accelerator"]),
        "accumulate_grad_batches": 1
        if accumulate == AUTO
        else accumulate,  # not known yet: robustft/training/accumulation.py
        "enable_checkpointing": False,  # robustft/training/checkpoints.py keeps what is needed
        "use_distributed_sampler": False,  # ours neither repeats nor drops images
        "num_sanity_val_steps": 0,
        "profiler": _profiler(options.get("profiler"), folder),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in bar),
    }
    try:
        return Trainer(**chosen, callbacks=[*callbacks, *bar], logger=loggers or False, default_root_dir=folder)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]}") from error


def _profiler(kind: str | None, folder: Path) -> Profiler | None:
    """A profiler that writes ``fit-profile.txt`` and ``validate-profile.txt``; Lightning's own way is a log line."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return None if kind is None else kinds[kind](dirpath=folder, filename="profile")


def resolve_precision(precision: Any, accelerator: str) -> Any:
    """Lightning's name of a precision; ``auto`` is bf16-mixed on hardware that computes in bfloat16, else 32-true.

    Raises:
        UserError: the device does not compute in it.
    """
    kind = device_type(accelerator)
    if precision == "auto":
        computes = {"cuda": cuda_has_bf16, "cpu": cpu_has_bf16}.get(kind)
        return "bf16-mixed" if computes is not None and computes() else "32-true"
    name = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(str(precision), precision)
    if name == "16-mixed" and kind == "cpu":
        raise UserError(
            f"trainer.precision={precision}: CPUs do not train in float16. Use bf16-mixed or 32-true, or a GPU."
        )
    return name


def device_type(accelerator: str) -> str:
    """What ``trainer.accelerator`` computes on: cpu, cuda, mps ..."""
    here = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator == "cpu" or here is None else here.type


def cuda_has_bf16() -> bool:
    """Whether the GPU multiplies bfloat16 in hardware."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX); emulated it is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


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
            f"data.batch_size={data.batch_size} is more than the {data.train_images} training images: there would be no"
            " step. Give a smaller data.batch_size"
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
                f"trainer.limit_val_batches={share} of the {batches} batch(es) of {evaluation_set.name} is none: give"
                " more, or a number of batches, or limit images by data.eval_images"
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


def _resume(trainer: Trainer, finetuner: Finetuner, data: RobustnessData, position: Position) -> None:
    """Tell the data where to go on, and make up for the evaluation that the run was stopped before."""
    data.resume_at(position.micro_batch)
    # With max_steps Lightning would count an epoch twice that was over when the state was saved.
    setattr(trainer.fit_loop, "_iteration_based_training", lambda: False)  # noqa: B010 -- it is a method
    if position.evaluation_due and finetuner.sets:
        loaders = [data.eval_loader(evaluation_set) for evaluation_set in finetuner.sets]
        trainer.validate(finetuner, loaders, ckpt_path=position.path, weights_only=True, verbose=False)


def _describe(data: RobustnessData, trainer: Trainer, steps: int) -> str:
    devices = f"{trainer.world_size} {trainer.strategy.root_device.type} device{'s' * (trainer.world_size > 1)}"
    return (
        f"training: {steps:,} steps of {data.batch_size} images ({data.train_images:,} images in all, "
        f"{steps * data.batch_size / max(1, data.train_images):.3g} epochs) on {devices}, {trainer.precision}"
    )
