"""The statistics of the reports: paired differences, effective robustness, trade-off curves at matched ID.

Accuracies are fractions in 0…1. SciPy's distributions are imported where they are needed: that takes half a second.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean as exact_mean

import numpy as np

from robustft.common.errors import UserError


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
        """Predict the OOD accuracy the baselines have at this ID accuracy."""
        return float(1 / (1 + np.exp(-(self.slope * _logit(id_top1) + self.intercept))))


def holm(values: Sequence[float]) -> list[float]:
    """Correct p values for their number (Holm, 1979).

    Args:
        values: p, each 0…1.

    Returns:
        One for each, in their order, 0…1.

    Example:
        >>> [round(p, 2) for p in holm([0.04, 0.01, 0.03, 0.5])]
        [0.09, 0.04, 0.09, 0.5]
    """
    order = sorted(range(len(values)), key=lambda place: values[place])
    corrected, worst = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, values[place] * (len(values) - rank)))
        corrected[place] = worst
    return corrected


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of the sample (n − 1; None for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def within_seeds(values: Iterable[tuple[int | None, float]]) -> list[float]:
    """Average the values of each seed: runs repeated with a seed are one observation, not several.

    Args:
        values: pairs of seed and value. A value without a seed (None) stands for itself.

    Returns:
        one value a seed, in order of appearance.
    """
    parts: dict[object, list[float]] = {}
    for number, (seed, value) in enumerate(values):
        parts.setdefault(("none", number) if seed is None else seed, []).append(value)
    return [exact_mean(part) for part in parts.values()]


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
    if error == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, n)
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, n - 1)) * error
    return Difference(mean, mean - half, mean + half, float(2 * t.sf(abs(mean) / error, n - 1)), n)


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
