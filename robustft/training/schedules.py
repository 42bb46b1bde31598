"""How the learning rate goes through a training: one function a schedule, which conf/schedule/<name>.yaml names.

Each takes the optimiser and the number of its steps; its other parameters are settings ``optimizer.<name>``, or of its
own file, ``schedule.<name>``.
"""

import logging
import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from robustft.common.wording import counted

log = logging.getLogger(__name__)


def one_cycle(
    optimizer: Optimizer,
    steps: int,
    lr: float,
    warmup: float,
    max_momentum: float = 0.95,
    base_momentum: float = 0.85,
) -> LRScheduler:
    """Rise from lr/25 to ``lr`` and fall to lr/250,000, in cosines (Smith and Topin, 2018; torch's OneCycleLR).

    Against it Adam's β1 falls from ``max_momentum`` to ``base_momentum`` and rises again.

    Args:
        warmup: of the rise: below 1 a fraction of the steps, else a number of steps.
    """
    _warn_of_endless(warmup, steps)
    rise = warmup if warmup < 1 else min(1.0, warmup / steps)
    if rise * steps == 1:
        rise *= 1 + 1e-9  # OneCycleLR divides by the length of a rise that is exactly one step
    return OneCycleLR(
        optimizer,
        max_lr=_peaks(optimizer, lr),
        total_steps=steps,
        pct_start=rise,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
    )


def warmup_cosine(optimizer: Optimizer, steps: int, lr: float, warmup: float) -> LRScheduler:
    """Rise linearly to ``lr``, then fall to 0 in a cosine; β1 stays (the recipe of wise-ft, FLYP and what followed).

    Step k of a rise of W steps has lr·(k + 1)/W, a later one lr·½(1 + cos(π (k − W)/(steps − W))).

    Args:
        warmup: of the rise: below 1 a fraction of the steps, else a number of steps.
    """
    _warn_of_endless(warmup, steps)
    rise = round(warmup * steps) if warmup < 1 else int(warmup)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    for group, peak in zip(optimizer.param_groups, _peaks(optimizer, lr), strict=True):
        group["lr"] = peak
    return LambdaLR(optimizer, factor)


def _warn_of_endless(warmup: float, steps: int) -> None:
    """A rise as long as the training is right for a look whether it runs, and for little else."""
    if warmup >= max(2, steps):
        log.warning(
            "optimizer.warmup=%g: the training has %s, so the learning rate does nothing but rise",
            *(warmup, counted(steps, "step")),
        )


def _peaks(optimizer: Optimizer, lr: float) -> list[float]:
    """Peak of every group: ``lr``, times the group's own ``lr_scale`` where a method gives it one."""
    return [lr * group.get("lr_scale", 1.0) for group in optimizer.param_groups]
