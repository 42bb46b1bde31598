"""The scores of a set from logits that are known: the same, bit for bit, as an evaluation that makes them."""

import math
from collections.abc import Mapping

from jaxtyping import Bool, Float
from torch import Tensor

from robustft.data.sets import EvaluationSet
from robustft.evaluation.metrics import SetMetric
from robustft.evaluation.results import Score

AT_ONCE = 1024  # images


def update(
    metrics: Mapping[str, SetMetric],
    logits: Float[Tensor, "batch allowed"],
    log_p: Float[Tensor, "batch allowed"],
    correct: Bool[Tensor, "batch allowed"],
    temperature: float | None,
) -> None:
    """Tell metrics of a batch, without waiting for the device.

    Args:
        log_p: logarithms of the probabilities at temperature 1.
        temperature: for metrics of calibrated probabilities; None: these are told nothing.
    """
    probabilities = log_p.exp()
    for metric in metrics.values():
        if not metric.calibrated:
            metric.update(probabilities, correct)
        elif temperature is not None:
            metric.update((logits / temperature).softmax(1), correct)


def values(metrics: Mapping[str, SetMetric], temperature: float | None) -> dict[str, float | None]:
    """What metrics have found, on all devices; None where that is no number, or is calibrated by nothing."""
    found = {
        name: math.nan if metric.calibrated and temperature is None else float(metric.compute())
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
) -> Score:
    """The score of a set of which this process has all logits, on the CPU, of the classes that the set allows.

    Args:
        metrics: new ones.
    """
    hits = 0
    for metric in metrics.values():
        metric.start(correct.shape[1])
        metric.sync_on_compute = False  # nothing is to be added by other processes
    for some, right in zip(logits.split(AT_ONCE), correct.split(AT_ONCE), strict=True):
        hits += int(right.gather(1, some.argmax(1, keepdim=True)).sum())
        update(metrics, some, some.log_softmax(1), right, temperature)
    return Score(hits / len(logits), len(logits), values(metrics, temperature))
