"""What a model is measured by beside top-1: one class a metric, which conf/metric/<name>.yaml names.

A metric is told of every batch of a set, as probabilities of the classes that the set allows and which of them are
right. Where several classes are right (ObjectNet), p(right) is their sum, and an image belongs to the first of them.

What is summed are whole numbers: counts, and real numbers in units of 2⁻³² (``exact``). Their sum is the same in any
order, so a metric is the same, to the last bit, however the images come in batches and are shared out over devices.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor
from torchmetrics import Metric

SCALE = 2.0**32  # of `exact`: a set may have 20 million images with numbers of up to 100 each


class SetMetric(Metric):
    """A number about one evaluation set.

    Its states are whole numbers, ``add_sum``, which add up over batches and devices. ``update`` must not wait for the
    device. A metric of one's own is a subclass; the mean of a number per image is one of ``MeanOfImages``:

    Example:
        >>> class Sure(SetMetric):
        ...     "Share of images with a class above 90 %."
        ...     higher_is_better, unit = None, "%"
        ...
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.add_sum("sure")
        ...         self.add_sum("n")
        ...
        ...     def update(self, probabilities: Tensor, correct: Tensor) -> None:
        ...         self.sure += (probabilities.amax(1) > 0.9).sum()
        ...         self.n += len(probabilities)
        ...
        ...     def compute(self) -> float:
        ...         return int(self.sure) / int(self.n)

    Attributes:
        higher_is_better: None where neither is.
        unit: "%" of a fraction in 0…1, which is shown in percent; else what stands behind the number.
        label: what tables call it; "": its name.
        calibrated: it is given the probabilities at the temperature that suits the hold-out best.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better: bool | None = False
    unit = "%"
    label = ""
    calibrated = False

    def start(self, allowed: int) -> None:
        """Is told how many classes the set allows, before anything else: for states that have one number for each."""

    def add_sum(self, name: str, *shape: int) -> None:
        """Add a state ``self.<name>`` of whole numbers, which begins at 0 and adds up over devices."""
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def update(self, probabilities: Float[Tensor, "batch allowed"], correct: Bool[Tensor, "batch allowed"]) -> None:
        """Take in a batch: the probabilities of the classes that the set allows, and which of them are right."""

    @abstractmethod
    def compute(self) -> float:
        """The metric of all that was taken in, on all devices."""


def exact(values: Float[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Round to whole multiples of 2⁻³² (an error of at most 1.2·10⁻¹⁰): their sum has no order. Back: ``inexact``."""
    return (values * SCALE).round().to(torch.int64)


def inexact(sums: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The numbers that sums of ``exact`` ones stand for, in float64 on the CPU."""
    return sums.cpu().double() / SCALE


def right_probability(
    probabilities: Float[Tensor, "batch allowed"], correct: Bool[Tensor, "batch allowed"]
) -> Float[Tensor, " batch"]:
    """p(right): the sum over the right classes."""
    return (probabilities * correct).sum(1)


class _Confusion(SetMetric):
    """Counts by class: an image's class is the first right one, and a right prediction is of that class."""

    higher_is_better = True
    images: Int64[Tensor, " allowed"]
    predicted: Int64[Tensor, " allowed"]
    hits: Int64[Tensor, " allowed"]

    def start(self, allowed: int) -> None:
        for name in ("images", "predicted", "hits"):
            self.add_sum(name, allowed)

    def update(self, probabilities: Float[Tensor, "batch allowed"], correct: Bool[Tensor, "batch allowed"]) -> None:
        owner = correct.int().argmax(1)
        guess = probabilities.argmax(1)
        hit = correct.gather(1, guess[:, None])[:, 0]
        ones = torch.ones_like(owner)
        self.images.index_add_(0, owner, ones)
        self.hits.index_add_(0, owner, hit.to(ones.dtype))
        self.predicted.index_add_(0, torch.where(hit, owner, guess), ones)

    def accuracies(self) -> Float[Tensor, " present"]:
        """Of the classes that have images."""
        images, hits = self.images.cpu().double(), self.hits.cpu().double()
        return hits[images > 0] / images[images > 0]


class PerClass(_Confusion):
    """Mean over the classes of the accuracy on the images of each: the same weight for rare classes."""

    label = "per class"

    def compute(self) -> float:
        return float(self.accuracies().mean())


class WorstClass(_Confusion):
    """The accuracy on the images of the class where it is lowest."""

    label = "worst class"

    def compute(self) -> float:
        return float(self.accuracies().min())


class MacroF1(_Confusion):
    """Mean over the classes of 2 · hits / (images + predictions).

    Classes that are neither shown nor predicted are left out.
    """

    label = "macro F1"

    def compute(self) -> float:
        images, predicted, hits = (counts.cpu().double() for counts in (self.images, self.predicted, self.hits))
        there = images + predicted > 0
        return float((2 * hits[there] / (images + predicted)[there]).mean())


class ECE(SetMetric):
    """Expected calibration error: |confidence − accuracy| of equally wide bins of the confidence, weighted by images.

    Guo et al.: On calibration of modern neural networks, ICML 2017. Bins are (lo, hi], over the whole set: a mean of
    the errors of batches would be another number.

    Args:
        bins: their number.
    """

    label = "ECE"
    edges: Float[Tensor, " bins-1"]
    images: Int64[Tensor, ""]
    hits: Int64[Tensor, " bins"]
    confidence: Int64[Tensor, " bins"]

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        self.register_buffer("edges", torch.arange(1, bins) / bins, persistent=False)  # linspace rounds otherwise
        self.add_sum("images")
        self.add_sum("hits", bins)
        self.add_sum("confidence", bins)

    def update(self, probabilities: Float[Tensor, "batch allowed"], correct: Bool[Tensor, "batch allowed"]) -> None:
        confidence, guess = probabilities.max(1)
        place = torch.bucketize(confidence, self.edges.to(confidence.dtype))  # (lo, hi]
        hit = correct.gather(1, guess[:, None])[:, 0]
        self.hits.index_add_(0, place, hit.to(self.hits.dtype))
        self.confidence.index_add_(0, place, exact(confidence))
        self.images += len(confidence)

    def compute(self) -> float:
        gaps = inexact(self.confidence) - self.hits.cpu().double()
        return float(gaps.abs().sum()) / int(self.images)


class CalibratedECE(ECE):
    """ECE once the logits are divided by the temperature at which the hold-out's NLL is least."""

    label = "ECE, calibrated"
    calibrated = True


class MeanOfImages(SetMetric):
    """The mean of a number per image, which a subclass gives.

    Example:
        >>> class Confidence(MeanOfImages):
        ...     "Mean probability of the predicted class."
        ...     higher_is_better, unit, label = None, "%", "confidence"
        ...
        ...     def of(self, probabilities: Tensor, correct: Tensor) -> Tensor:
        ...         return probabilities.amax(1)
    """

    total: Int64[Tensor, ""]
    n: Int64[Tensor, ""]

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("total")
        self.add_sum("n")

    def update(self, probabilities: Float[Tensor, "batch allowed"], correct: Bool[Tensor, "batch allowed"]) -> None:
        self.total += exact(self.of(probabilities, correct)).sum()
        self.n += len(probabilities)

    @abstractmethod
    def of(self, probabilities: Tensor, correct: Tensor) -> Float[Tensor, " batch"]:
        """The number of each image, of up to 100 in size."""

    def compute(self) -> float:
        return float(inexact(self.total)) / int(self.n)


class NLL(MeanOfImages):
    """Negative log-likelihood, −log p(right), in nats."""

    label, unit = "NLL", "nats"

    def of(self, probabilities: Tensor, correct: Tensor) -> Float[Tensor, " batch"]:
        smallest = torch.finfo(probabilities.dtype).tiny  # a softmax may round to 0
        return -right_probability(probabilities, correct).clamp(min=smallest).log()


class Brier(MeanOfImages):
    """Brier score, Σₖ p(k)² − 2 p(right) + 1: the squared distance to certainty of the right class, in 0…2."""

    label, unit = "Brier", ""

    def of(self, probabilities: Tensor, correct: Tensor) -> Float[Tensor, " batch"]:
        return probabilities.square().sum(1) - 2 * right_probability(probabilities, correct) + 1


def best_temperature(logits: Float[Tensor, "images allowed"], correct: Bool[Tensor, "images allowed"]) -> float:
    """The temperature T at which softmax(logits / T) has the least NLL, within 1/100…100.

    Guo et al. (2017), by a bounded search over log T in float64; the NLL is convex in 1/T.
    """
    logits = logits.double()

    def nll(log_t: float) -> float:
        log_p = F.log_softmax(logits / math.exp(log_t), dim=1)
        return -float(log_p.masked_fill(~correct, -torch.inf).logsumexp(1).mean())

    bound = math.log(100)
    found: Any = minimize_scalar(nll, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x)


def described(metrics: Mapping[str, SetMetric]) -> dict[str, dict[str, Any]]:
    """What a reader of results needs to know of metrics whose code is not at hand."""
    return {
        name: {"label": metric.label or name, "unit": metric.unit, "higher_is_better": metric.higher_is_better}
        for name, metric in metrics.items()
    }


def needs_temperature(metrics: Iterable[SetMetric]) -> bool:
    return any(metric.calibrated for metric in metrics)
