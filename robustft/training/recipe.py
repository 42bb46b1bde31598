"""How a run trains, whatever its method: optimiser and schedule, data, limits, what is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from robustft.common.asking import given
from robustft.data.datamodule import RobustnessData
from robustft.training.constraint import Constraint
from robustft.training.moving import Moving
from robustft.training.parts import Parts
from robustft.training.schedules import one_cycle
from robustft.training.trainer import agreement, make_trainer


@dataclass(frozen=True)
class Recipe:
    """AdamW and how its learning rate goes (``optimizer``, ``schedule``).

    Attributes:
        optimizer: lr, weight_decay, beta1, beta2, and what the schedule asks for.
        schedule: gives a scheduler for (optimiser, steps); its other parameters are given the settings of their name.
    """

    optimizer: Mapping[str, Any]
    schedule: Callable[..., LRScheduler] = one_cycle

    @property
    def adam(self) -> dict[str, Any]:
        """Arguments of torch's Adam optimisers. The learning rate is the schedule's."""
        settings = self.optimizer
        betas = (float(settings.get("beta1", 0.9)), float(settings.get("beta2", 0.999)))
        return {"lr": settings["lr"], "betas": betas, "weight_decay": settings["weight_decay"]}

    def scheduler(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        return given(self.schedule, self.optimizer)(optimizer, steps)

    def changed(self, **settings: Any) -> "Recipe":
        """The same with some settings of the optimiser replaced."""
        return replace(self, optimizer={**self.optimizer, **settings})

    @property
    def settings(self) -> dict[str, Any]:
        """What has to be the same in a run that is gone on with."""
        own = self.schedule if isinstance(self.schedule, partial) else partial(self.schedule)
        return {**self.optimizer, "schedule": own.func.__name__, **own.keywords}


@dataclass(frozen=True)
class Training:
    """How a run trains: everything but the method.

    Attributes:
        trainer: arguments of Lightning's Trainer.
        moving: an average of the weights that is kept, and what for.
        parts: which weights are trained.
        resume: go on from ``folder/last.ckpt``.
        started: when this session of the run began, of ``time.perf_counter``; None: now.
        save_minutes: how often ``last.ckpt`` is written, besides the ends of epochs.
        watch: makes one more callback, given the number of optimiser steps and what to call after work that is no
            training, so that it does not count as such.
    """

    data: RobustnessData
    folder: Path
    trainer: Mapping[str, Any]
    recipe: Recipe
    seed: int = 0
    constraints: Sequence[Constraint] = ()
    moving: Moving | None = None
    parts: Parts = field(default_factory=Parts)
    loggers: Sequence[Logger] = ()
    resume: bool = False
    started: float | None = None
    save_minutes: float = 10
    watch: Callable[[int, Callable[[], None]], Callback] | None = None

    def agreement(self) -> Callable[[bool], bool] | None:
        """What tells each of the run's processes whether all say yes; see `robustft.training.trainer.agreement`."""
        return agreement(make_trainer(self.trainer, self.folder))
