"""The statistics of the reports: paired differences, effective robustness, trade-off curves at matched ID.

Accuracies are fractions in 0…1. Everything is NumPy and the standard library.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robustft.errors import UserError


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences over `n` seeds, confidence interval, two-sided p (None where n < 2)."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int


@dataclass(frozen=True)
class LogitLine:
    """logit(OOD) = slope · logit(ID) + intercept, through a set of baseline models."""

    slope: float
    intercept: float

    def ood(self, id_top1: float) -> float:
        """The OOD accuracy the baselines have at this ID accuracy."""
        return float(1 / (1 + np.exp(-(self.slope * _logit(id_top1) + self.intercept))))


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of the sample (n − 1; None for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def t_cdf(t: float, df: int) -> float:
    """P(T ≤ t) of Student's t, integer degrees of freedom: a finite sum (Abramowitz & Stegun 26.7.3–4)."""
    theta = math.atan(t / math.sqrt(df))
    term = math.cos(theta) if df % 2 else 1.0
    total = 0.0 if df == 1 else term
    for k in range(2 + df % 2, df - 1, 2):
        term *= math.cos(theta) ** 2 * (k - 1) / k
        total += term
    odd = 2 / math.pi * (theta + math.sin(theta) * total)
    return (1 + (odd if df % 2 else math.sin(theta) * total)) / 2


def t_quantile(p: float, df: int) -> float:
    """The t with P(T ≤ t) = p, for 0.5 ≤ p < 1, by bisection."""
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def paired_difference(
    ours: Mapping[int | None, float], theirs: Mapping[int | None, float], confidence: float = 0.95
) -> Difference | None:
    """Ours minus theirs over the seeds both have; None where they share none.

    Both map seeds to a value. A value under the key None holds for every seed (a zero-shot model).
    """
    seeds: list[int | None] = [seed for seed in (*ours, *theirs) if seed is not None]
    pairs = [
        (ours.get(seed, ours.get(None)), theirs.get(seed, theirs.get(None))) for seed in dict.fromkeys(seeds or [None])
    ]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    if not differences:
        return None
    mean, std = mean_std(differences)
    n = len(differences)
    if std is None:
        return Difference(mean, None, None, None, n)
    error = std / math.sqrt(n)
    half = t_quantile((1 + confidence) / 2, n - 1) * error
    if error == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, n)
    return Difference(mean, mean - half, mean + half, 2 * (1 - t_cdf(abs(mean) / error, n - 1)), n)


def logit_fit(id_top1: Sequence[float], ood_top1: Sequence[float]) -> LogitLine:
    """Least squares in logit space (Taori et al. 2020, Miller et al. 2021).

    Raises:
        UserError: fewer than two different ID accuracies.
    """
    if len(set(id_top1)) < 2:
        raise UserError("The baselines need at least two models of different ID accuracy to fit a line.")
    slope, intercept = np.polyfit(_logit(id_top1), _logit(ood_top1), 1)
    return LogitLine(float(slope), float(intercept))


def effective_robustness(id_top1: float, ood_top1: float, line: LogitLine) -> float:
    """OOD accuracy above what the baselines' line predicts at this ID accuracy."""
    return ood_top1 - line.ood(id_top1)


def ood_at_matched_id(id_top1: Sequence[float], ood_top1: Sequence[float], at: float) -> float | None:
    """OOD accuracy of a trade-off curve (points over β or α, any order) where its ID accuracy is `at`.

    Linear between the neighbours by ID; points of equal ID count as their mean. None outside the curve:
    nothing is extrapolated. Every point counts: a front alone would favour curves with more or noisier ones.
    """
    x, y = np.asarray(id_top1, float), np.asarray(ood_top1, float)
    places = np.unique(x)
    if not len(places) or not places[0] <= at <= places[-1]:
        return None
    return float(np.interp(at, places, [y[x == place].mean() for place in places]))


def _logit(p: float | Sequence[float]) -> np.ndarray:
    """Log odds; 0 and 1 are moved in by 1e-6."""
    clipped = np.clip(np.asarray(p, float), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)))
