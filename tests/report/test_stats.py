"""The statistics against plain NumPy and tabulated values."""

import math

import numpy as np
import pytest

from robustft.common.errors import UserError
from robustft.report.stats import (
    effective_robustness,
    logit_fit,
    mean_std,
    ood_at_matched_id,
    paired_difference,
    within_seeds,
)


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.7062), (3, 4.30265), (5, 2.77645), (10, 2.26216), (31, 2.04227)])
def test_intervals_use_the_tabulated_t_quantiles(n: int, quantile: float):
    ours = {seed: 0.5 + 0.01 * math.sin(seed) for seed in range(n)}
    found = paired_difference(ours, dict.fromkeys(ours, 0.25))
    error = np.std(list(ours.values()), ddof=1) / math.sqrt(n)
    assert (found.high - found.mean) / error == pytest.approx(quantile, abs=1e-4)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 31])
def test_p_is_the_integral_of_the_t_density(n: int):
    ours = {seed: 0.5 + 0.01 * math.sin(seed) for seed in range(n)}
    found = paired_difference(ours, dict.fromkeys(ours, 0.497))
    t = abs(found.mean) / (np.std(list(ours.values()), ddof=1) / math.sqrt(n))
    df, x = n - 1, np.linspace(0, t, 20001)
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    density = scale * (1 + x**2 / df) ** (-(df + 1) / 2)
    assert found.p == pytest.approx(1 - 2 * np.trapezoid(density, x), abs=1e-8)


def test_runs_of_one_seed_are_one_observation():
    assert within_seeds([(1, 0.4), (2, 0.9), (1, 0.6), (None, 0.1), (None, 0.1)]) == [0.5, 0.9, 0.1, 0.1]
    assert within_seeds([(1, 0.1)] * 3) == [0.1]


def test_mean_std():
    assert mean_std([0.1, 0.4, 0.7]) == pytest.approx((0.4, 0.3))
    assert mean_std([0.4]) == (0.4, None)


def test_paired_difference_over_common_seeds():
    ours = {1: 0.70, 2: 0.72, 3: 0.71, 4: 0.75, 5: 0.73, 9: 0.1}
    theirs = {5: 0.70, 4: 0.73, 3: 0.70, 2: 0.69, 1: 0.68}
    gap = np.array([0.70 - 0.68, 0.72 - 0.69, 0.71 - 0.70, 0.75 - 0.73, 0.73 - 0.70])
    half = 2.776445 * gap.std(ddof=1) / math.sqrt(5)
    found = paired_difference(ours, theirs)
    assert found is not None and found.n == 5
    assert (found.mean, found.low, found.high) == pytest.approx((gap.mean(), gap.mean() - half, gap.mean() + half))
    # The interval at confidence 1 − p ends at zero.
    edge = paired_difference(ours, theirs, confidence=1 - found.p)
    assert edge.low == pytest.approx(0, abs=1e-9)


def test_paired_difference_without_pairs_spread_or_seeds():
    assert paired_difference({1: 0.5}, {2: 0.5}) is None
    one = paired_difference({1: 0.5}, {1: 0.25})
    assert (one.mean, one.low, one.n) == (0.25, None, 1)
    zero_shot = paired_difference({1: 0.5, 2: 0.75}, {None: 0.25})
    assert (zero_shot.mean, zero_shot.n) == (0.375, 2)
    assert paired_difference({None: 0.5}, {None: 0.25}).n == 1
    same = paired_difference({1: 0.5, 2: 0.5}, {1: 0.25, 2: 0.25})
    assert (same.low, same.high, same.p) == (0.25, 0.25, 0.0)


def test_effective_robustness_is_the_height_above_the_logit_line():
    x = np.array([0.5, 0.6, 0.7, 0.8])
    y = 1 / (1 + np.exp(-(0.8 * np.log(x / (1 - x)) - 0.3)))
    line = logit_fit(x.tolist(), y.tolist())
    assert (line.slope, line.intercept) == pytest.approx((0.8, -0.3))
    on_line = 1 / (1 + math.exp(-(0.8 * math.log(0.75 / 0.25) - 0.3)))
    assert effective_robustness(0.75, on_line, line) == pytest.approx(0, abs=1e-12)
    assert effective_robustness(0.75, on_line + 0.03, line) == pytest.approx(0.03)
    with pytest.raises(UserError, match="two models"):
        logit_fit([0.5, 0.5], [0.1, 0.2])


def test_ood_at_matched_id():
    ids, oods = [0.9, 0.7, 0.8], [0.5, 0.7, 0.64]
    assert ood_at_matched_id(ids, oods, 0.75) == pytest.approx(0.67)
    assert ood_at_matched_id(ids, oods, 0.9) == 0.5
    assert ood_at_matched_id(ids, oods, 0.91) is None
    assert ood_at_matched_id(ids, oods, 0.69) is None
    assert ood_at_matched_id([], [], 0.5) is None
    assert ood_at_matched_id([0.8, 0.8], [0.5, 0.6], 0.8) == pytest.approx(0.55)
