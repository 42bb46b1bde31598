"""DaWin: weights interpolated for each cluster of a test set, by how sure the two models are of its images.

Oh, Li, Song, Yun, Han: DaWin: training-free dynamic weight interpolation for robust adaptation, ICLR 2025. It is
transductive: it looks at a whole set, without labels, and knows which set an image is of. Temperatures come from the
hold-out, where the public code has those of the sets that it reports.
"""

import logging
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.cluster.vq import kmeans2
from scipy.stats import beta
from torch import Tensor, nn

from robustft.data.datamodule import RobustnessData
from robustft.data.sets import Batch, EvaluationSet
from robustft.evaluation.metrics import best_temperature
from robustft.methods.ensembles import Encode, holdout_of, logits_of
from robustft.methods.wiseft import interpolated
from robustft.models.classifier import Classifier

log = logging.getLogger(__name__)

Plan = tuple[Int64[Tensor, " images"], list[float]]  # the cluster of each image of a set, λ of each cluster


class DaWin(Classifier):
    """A model for each cluster of each set: (1 − λ) · zero-shot + λ · tuned, made when its set is evaluated.

    Args:
        plans: by set.
    """

    def __init__(self, zeroshot: Classifier, tuned: Classifier, plans: Mapping[str, Plan]) -> None:
        nn.Module.__init__(self)
        self._ends = (zeroshot, tuned)  # in a tuple: they stay on the CPU
        self.architecture, self.plans = tuned.architecture, plans
        self.text, self.prompts = None, None
        self._made: tuple[str, list[Classifier]] = "", []

    def judge(self, batch: Batch, of: EvaluationSet) -> Float[Tensor, "batch classes"]:
        device = batch.images.device
        clusters = self.plans[of.name][0][batch.indices.cpu()]
        logits = torch.empty(len(batch.images), of.correct.shape[1], device=device)
        for number, model in enumerate(self._models(of.name, device)):
            chosen = (clusters == number).nonzero()[:, 0].to(device)
            if len(chosen):
                logits[chosen] = model(batch.images[chosen]).float()
        return logits

    def _models(self, name: str, device: torch.device) -> list[Classifier]:
        """Those of one set; they replace the ones of the set before."""
        if self._made[0] != name:
            between = (interpolated(*self._ends, share) for share in self.plans[name][1])
            self._made = name, [model.without_text().to(device) for model in between]
        return self._made[1]


def dawin(
    zeroshot: Classifier, checkpoint: Classifier, data: RobustnessData, encode: Encode, *, clusters: int, offset: bool
) -> DaWin:
    """The interpolations of ``zeroshot`` and ``checkpoint`` for ``data``'s evaluation sets.

    Args:
        clusters: of a set, each with a model of its own; at least 1.
        offset: add to both models' certainty what their entropies vary by (``shares``).

    Raises:
        UserError: nothing is held out.
    """
    holdout = holdout_of(data, "dawin")
    models = zeroshot.without_text(), checkpoint.without_text()
    correct = holdout.correct[holdout.dataset.labels]
    temperatures = [best_temperature(logits_of(m, encode(m, holdout.dataset)), correct) for m in models]
    plans = {}
    for one in data.sets:
        zero, tuned = (
            entropy(logits_of(model, encode(model, one.dataset))[:, one.allowed] / temperature)
            for model, temperature in zip(models, temperatures, strict=True)
        )
        plans[one.name] = plan(shares(zero, tuned, offset), clusters)
        log.info("%s: %s", one.name, ", ".join(f"{share:.2f}" for share in plans[one.name][1]))
    return DaWin(zeroshot, checkpoint, plans)


def entropy(logits: Float[Tensor, "images classes"]) -> Float[Tensor, " images"]:
    """H of the softmax, in nats."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def shares(
    zeroshot: Float[Tensor, " images"], tuned: Float[Tensor, " images"], offset: bool
) -> Float[Tensor, " images"]:
    """λ of each image: the tuned model's part of the two models' certainties e^{−H}.

    With an offset it is (e^{−H_ft} + b/w) / (e^{−H_zs} + e^{−H_ft} + b), b the mean of σ/μ of the two entropies over
    the set (σ with n − 1) and w = (μ_zs + μ_ft) / μ_zs.

    Args:
        zeroshot: H_zs in nats.
        tuned: H_ft.
    """
    first, second = (-zeroshot).exp(), (-tuned).exp()
    if not offset or len(first) < 2:
        return second / (first + second)
    b = (zeroshot.std() / zeroshot.mean() + tuned.std() / tuned.mean()) / 2
    w = (zeroshot.mean() + tuned.mean()) / zeroshot.mean()
    return (second + b / w) / (first + second + b)


def plan(values: Float[Tensor, " images"], clusters: int) -> Plan:
    """The cluster of each image, and the mean λ of each, as a mixture of Beta distributions has them."""
    found = values.double().clamp(1e-6, 1 - 1e-6).numpy()
    assigned = torch.from_numpy(beta_mixture(found, min(clusters, len(np.unique(found)))))
    numbers, assigned = assigned.unique(return_inverse=True)
    return assigned, [float(values[assigned == number].double().mean()) for number in range(len(numbers))]


def beta_mixture(values: np.ndarray, components: int, restarts: int = 3, tolerance: float = 1e-4) -> np.ndarray:
    """The component of each value, by expectation maximisation; of ``restarts`` the likeliest.

    It starts from k-means; a component's parameters are those of the mean and variance of its share of the values. It
    ends where the mean log-likelihood gains less than ``tolerance``.

    Args:
        values: in (0, 1).
    """
    best, assigned = -np.inf, np.zeros(len(values), dtype=np.int64)
    for seed in range(restarts):
        _, labels = kmeans2(values[:, None], components, minit="++", seed=seed)
        part, before = np.eye(components)[labels], -np.inf
        for _ in range(200):
            log_p = _log_densities(values, part)
            total = np.logaddexp.reduce(log_p, axis=1)
            part = np.exp(log_p - total[:, None])
            likelihood = float(total.mean())
            if likelihood - before < tolerance:
                break
            before = likelihood
        if likelihood > best:
            best, assigned = likelihood, part.argmax(1)
    return assigned


def _log_densities(values: np.ndarray, part: np.ndarray) -> np.ndarray:
    """log(share · density) of each value in each component, whose parameters are those of its moments."""
    found = []
    for weight in part.T:
        total = weight.sum()
        if total < 1e-9:  # nothing is left of it
            found.append(np.full(len(values), -np.inf))
            continue
        mean = float((weight * values).sum() / total)
        variance = float((weight * (values - mean) ** 2).sum() / total)
        variance = min(max(variance, 1e-8), 0.999 * mean * (1 - mean))
        strength = mean * (1 - mean) / variance - 1
        found.append(np.log(total / len(values)) + beta.logpdf(values, mean * strength, (1 - mean) * strength))
    return np.stack(found, axis=1)
