"""Averages of weights over a training: teachers that move, and averages of the student as the result.

A rule is a function of the step alone: the weight of the student in the average after it. conf/moving/<name>.yaml names
one; its parameters are settings ``moving.<name>``. The rules are those of CaRot (``ema``), TRACER and CLIPood
(``trajectory``).
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from robustft.models.lora import named_weights
from robustft.training import fused

Rule = Callable[[int, int], float]
SHARE = 0.2  # of the run: the time constant of CaRot's teacher at its end (5,000 of 25,000 steps)


@dataclass(frozen=True)
class Moving:
    """How an average moves and what it is for (``moving``, ``result``).

    Attributes:
        rule: (step from 0, number of steps) → weight of the student in the average after that step, 0…1; 0 leaves the
            average as it is.
        teaches: it takes the place of the method's teacher.
        result: it is evaluated and saved in the place of the student.
    """

    rule: Rule
    teaches: bool = True
    result: bool = False


class MovingAverage(nn.Module):
    """An average of ``start`` and of the weights that a model of the same names has after each step.

    It is kept in float32 or better: in half precision small updates are rounded away. Weights are averaged, buffers are
    the model's own. In a checkpoint it is whole, the number of its steps included.

    Example:
        >>> student = nn.Linear(2, 2)
        >>> average = MovingAverage(student, lambda step, steps: 0.1, steps=100)
        >>> average.update(student)  # after each step of the optimiser
        >>> average.model(torch.zeros(1, 2)).shape
        torch.Size([1, 2])

    Args:
        start: the average before the first step; it is copied.
        rule: see ``Moving``.
        steps: of the whole training.

    Attributes:
        model: the average itself, in evaluation mode, never trained.
    """

    def __init__(self, start: nn.Module, rule: Rule, steps: int) -> None:
        super().__init__()
        self.model: Any = deepcopy(start).requires_grad_(False).eval()
        for weight in self.model.parameters():
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
        self.rule, self.steps, self.done = rule, steps, 0

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Take in the weights of ``student`` after one more step; where it has low-rank updates, merged."""
        weight = self.rule(self.done, self.steps)
        self.done += 1
        if weight == 0:
            return
        averages = dict(self.model.named_parameters())
        pairs = [(averages[name], value) for name, value in named_weights(student)]
        fused.move_([mean for mean, _ in pairs], [value.to(mean.dtype) for mean, value in pairs], weight)
        for mean, buffer in zip(self.model.buffers(), student.buffers(), strict=True):
            mean.copy_(buffer)

    def train(self, mode: bool = True) -> "MovingAverage":
        """It stays in evaluation mode, whatever becomes of the module that it is part of."""
        return super().train(False)

    def get_extra_state(self) -> int:
        return self.done

    def set_extra_state(self, state: int) -> None:
        self.done = state


def ema(
    step: int,
    steps: int,
    decay: float | None = None,
    every: float = 1,
    first_decay: float | None = None,
    rise: float = 0.2,
) -> float:
    """Weigh the student by 1 − m in an exponential average: θ̄ ← m θ̄ + (1 − m) θ.

    CaRot's teacher (Oh et al., NeurIPS 2024) is ``decay=0.9, every=500, first_decay=0.05``, for about 25,000 steps: in
    shorter trainings ``every`` has to shrink with them (0.02 of the steps), else there is hardly an update.

    Args:
        decay: m, 0…1 (1 excluded). None: such that the average lags by a fifth of the run, as CaRot's does at its end.
        every: updates come after steps 0, ``every``, 2·``every``, …; below 1 it is a fraction of the steps.
        first_decay: m at step 0, from which it rises linearly to ``decay``; None: it is ``decay`` all along.
        rise: how long it rises, as a fraction of the steps.
    """
    every = in_steps(every, steps)
    if step % every:
        return 0.0
    kept = max(0.0, 1 - every / (SHARE * steps)) if decay is None else decay
    if first_decay is not None and step < rise * steps:
        kept = first_decay + (kept - first_decay) * step / (rise * steps)
    return 1 - kept


def trajectory(step: int, steps: int, beta: float = 0.5, every: float = 1, count: str = "steps") -> float:
    """Weigh the whole way: θ̄ = Σ_k a_k θ_k / Σ_k a_k, a_k the Beta(β, β) density at (k + ½)/(steps + 1), k from 0.

    θ_0 is where the average starts, θ_k the student after its k-th step. It is the average of CLIPood (Shu et al.,
    ICML 2023) and the teacher of TRACER (ICML 2026). Of a student that moves on a straight line it is at a third of the
    way early and at half of it at the end (β = ½): it never catches up, where an exponential average does.

    Args:
        beta: β > 0; below 1 beginning and end weigh most, with 1 all steps weigh the same.
        every: updates come after steps 0, ``every``, 2·``every``, …, and after the last one; below 1 it is a fraction.
        count: what k counts where ``every`` is above 1. "steps": an update stands for all steps since the one before,
            so that the average is the same but for its grid. "updates": as TRACER's code does it, by which the end of
            the density is never reached, and the teacher stays near a third of the way.
    """
    every = in_steps(every, steps)
    last = step == steps - 1
    if step % every and not last:
        return 0.0
    sums = _sums(beta, steps)
    if count == "updates":
        now = -(-step // every) + 1  # the last step may lie between
        before = now - 1
    else:
        now = step + 1
        before = 0 if step == 0 else (step - 1) // every * every + 1
    return float(1 - sums[before] / sums[now])


def in_steps(every: float, steps: int) -> int:
    """How many steps apart updates are, of a number of them (from 1 on) or a fraction of all (below 1).

    Example:
        >>> in_steps(0.02, 25_000), in_steps(0.02, 20), in_steps(7, 20)
        (500, 1, 7)
    """
    return int(every) if every >= 1 else max(1, round(every * steps))


@lru_cache(maxsize=8)
def _sums(beta: float, steps: int) -> np.ndarray:
    """a_0 + … + a_k for k = 0 … steps, but for the density's constant, which weights do not depend on."""
    x = (np.arange(steps + 1) + 0.5) / (steps + 1)
    return np.cumsum((x * (1 - x)) ** (beta - 1))
