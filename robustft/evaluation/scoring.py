"""The scores of a set from logits that are known: the same, bit for bit, as an evaluation that makes them."""

import math
from collections.abc import Mapping

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustft.data.sets import EvaluationSet
from robustft.evaluation.metrics import SetMetric
from robustft.evaluation.results import Score

AT_ONCE = 1024  # images


def start(metrics: Mapping[str, SetMetric], allowed: int, groups: Int64[Tensor, " images"] | None) -> None:
    """Tell new metrics of a set: how many classes it allows, and the group of each image if it tells groups apart."""
    for metric in metrics.values():
        metric.start(allowed)
        if metric.grouped and groups is not None:
            metric.start_groups(int(groups.max()) + 1)


def update(
    metrics: Mapping[str, SetMetric],
    logits: Float[Tensor, "batch allowed"],
    log_p: Float[Tensor, "batch allowed"],
    correct: Bool[Tensor, "batch allowed"],
    temperature: float | None,
    groups: Int64[Tensor, " batch"] | None = None,
) -> None:
    """Tell metrics of a batch, without waiting for the device.

    Args:
        log_p: logarithms of the probabilities at temperature 1.
        temperature: for metrics of calibrated probabilities; None: these are told nothing.
        groups: of the images, for metrics of groups; None: these are told nothing.
    """
    probabilities = log_p.exp()
    for metric in metrics.values():
        if not is_told(metric, temperature, groups):
            continue
        of_groups = {"groups": groups} if metric.grouped else {}
        if metric.calibrated:
            assert temperature is not None
            seen = (logits / temperature).softmax(1)
        else:
            seen = probabilities
        metric.update(seen, correct, **of_groups)


def is_told(metric: SetMetric, temperature: float | None, groups: Tensor | None) -> bool:
    """Say whether there is what a metric needs: a temperature for calibrated ones, groups for grouped ones."""
    return not (metric.calibrated and temperature is None) and not (metric.grouped and groups is None)


def values(
    metrics: Mapping[str, SetMetric], temperature: float | None, groups: Tensor | None = None
) -> dict[str, float | None]:
    """What metrics have found, on all devices; None where that is no number, or where they were told nothing."""
    found = {
        name: float(metric.compute()) if is_told(metric, temperature, groups) else math.nan
        for name, metric in metrics.items()
    }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def allowed_only(
    evaluation_set: EvaluationSet, logits: Float[Tensor, "images classes"]
) -> tuple[Float[Tensor, "images allowed"], Bool[Tensor, "images allowed"]]:
    """Logits and right classes of a set's images, of the classes that it allows."""
    allowed = evaluation_set.allowed
    return logits[:, allowed], evaluation_set.correct[evaluation_set.dataset.labels][:, allowed]


def score(
    logits: Float[Tensor, "images allowed"],
    correct: Bool[Tensor, "images allowed"],
    metrics: Mapping[str, SetMetric],
    temperature: float | None,
    groups: Int64[Tensor, " images"] | None = None,
) -> Score:
    """The score of a set of which this process has all logits, on the CPU, of the classes that the set allows.

    Args:
        metrics: new ones.
        groups: of the images, where the set tells groups apart.
    """
    hits = 0
    start(metrics, correct.shape[1], groups)
    for metric in metrics.values():
        metric.sync_on_compute = False  # nothing is to be added by other processes
    for first in range(0, len(logits), AT_ONCE):
        some, right = logits[first : first + AT_ONCE], correct[first : first + AT_ONCE]
        hits += int(right.gather(1, some.argmax(1, keepdim=True)).sum())
        of_some = None if groups is None else groups[first : first + AT_ONCE]
        update(metrics, some, some.log_softmax(1), right, temperature, of_some)
    return Score(hits / len(logits), len(logits), values(metrics, temperature, groups))
