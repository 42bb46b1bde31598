"""``trainer.accumulate_grad_batches=auto``: into how few micro-batches a training step fits on the device."""

import logging
import warnings
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from robustft.common.errors import UserError
from robustft.common.memory import largest_that_fits
from robustft.common.wording import counted, noun
from robustft.data.sets import Batch
from robustft.training.loop import settle
from robustft.training.method import Method
from robustft.training.recipe import Recipe, Training
from robustft.training.trainer import make_trainer

log = logging.getLogger(__name__)

TRIAL = Recipe({"lr": 1e-6, "weight_decay": 0.0, "warmup": 0.5})


def micro_batches_that_fit(method: Method, training: Training, least: int) -> int:
    """Find the smallest number of equal micro-batches of ``data.batch_size`` with which a step fits into memory.

    Real steps are tried on copies, from the whole batch downwards; weights, random streams and the optimiser's state
    stay as they are. On a CPU nothing is tried: it has no memory of its own to find the end of. (Lightning's batch
    size finder changes the images per step instead, and steps on the model itself.)

    Args:
        least: images that a micro-batch must have at least.

    Raises:
        UserError: not even the smallest micro-batch fits.
    """
    device = make_trainer(training.trainer, training.folder).strategy.root_device
    if device.type == "cpu" or method.light:
        return 1
    batch = training.data.batch_size
    sizes = [size for size in range(batch, least - 1, -1) if batch % size == 0]
    fits = largest_that_fits(sizes, lambda size: _two_steps(method, training, size, min(2, batch // size)))
    if fits is None:
        raise UserError(
            f"out of memory on {device}: a step does not fit with {counted(least, 'image')} at a time. Less is taken"
            " with model.grad_checkpointing=true, trainer.precision=bf16-mixed, or a smaller model."
        )
    count = batch // fits
    log.info(
        f"trainer.accumulate_grad_batches={count}: {counted(fits, 'image')} at a time {noun(fits, 'fits', 'fit')} on"
        f" {device}"
    )
    return count


def _two_steps(method: Method, training: Training, size: int, accumulate: int) -> None:
    """Two optimiser steps: the second has the optimiser's state, and gradients of a micro-batch before it."""
    side = method.student.preprocess.size
    pixels = torch.zeros(size, 3, side, side, dtype=torch.uint8)
    labels = torch.arange(size) % method.student.head.out_features  # of many classes: each may bring a text
    batch = Batch(pixels, labels, torch.arange(size))
    method = deepcopy(method)
    settle(method.train(), replace(training, recipe=TRIAL), [], steps=2)
    limits = {
        **dict.fromkeys(("limit_train_batches", "max_time", "profiler", "val_check_interval")),
        "max_epochs": 1,
        "max_steps": 2,
        "accumulate_grad_batches": accumulate,
        "log_every_n_steps": 1,  # what is measured then takes memory too
        "limit_val_batches": 0,
        "fast_dev_run": False,
        "enable_progress_bar": False,
    }
    with isolate_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches: Any = [batch] * 2 * accumulate
        loader: DataLoader = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
        make_trainer(dict(training.trainer) | limits, training.folder).fit(method, loader)
