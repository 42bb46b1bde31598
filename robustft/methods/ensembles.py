"""Two models at inference: what such methods share. Mixed probabilities, and temperatures from the hold-out."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from scipy.optimize import brentq
from torch import Tensor, nn

from robustft.common.errors import UserError
from robustft.data.datamodule import RobustnessData
from robustft.data.sets import Batch, EvaluationSet, ImageSet
from robustft.models.classifier import Classifier

Encode = Callable[[Classifier, ImageSet], Float[Tensor, "images features"]]
CHUNK = 8192  # images whose logits are held at a time
NEVER = -1e4  # log-probability of a class that the set does not allow


class Ensemble(Classifier):
    """Two models whose probabilities are mixed: p = (1 − w) · p_zeroshot + w · p_tuned, over the classes that a set
    allows. It has no weights of one model, and leaves no file of them.

    Args:
        temperatures: by which the logits of the two are divided.
    """

    def __init__(self, zeroshot: Classifier, tuned: Classifier, temperatures: tuple[float, float] = (1.0, 1.0)) -> None:
        nn.Module.__init__(self)
        self.zeroshot, self.tuned = zeroshot.without_text(), tuned.without_text()
        self.temperatures, self.architecture = temperatures, tuned.architecture
        self.text, self.prompts = None, None

    def weight(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """w of each image, 0…1, by its features in the tuned model."""
        raise NotImplementedError

    def judge(self, batch: Batch, of: EvaluationSet) -> Float[Tensor, "batch classes"]:
        features = self.tuned.encode(batch.images)
        logits = self.zeroshot(batch.images), self.tuned.classify(features)
        allowed = of.allowed.to(features.device)
        w = self.weight(features.float()).unsqueeze(1)
        first, second = (
            (z.float()[:, allowed] / t).log_softmax(1) for z, t in zip(logits, self.temperatures, strict=True)
        )
        mixed = torch.full_like(logits[1], NEVER, dtype=torch.float32)
        mixed[:, allowed] = mixture(first, second, w)
        return mixed


def mixture(
    first: Float[Tensor, "batch classes"], second: Float[Tensor, "batch classes"], w: Float[Tensor, "batch 1"]
) -> Float[Tensor, "batch classes"]:
    """log((1 − w) · p + w · q) of log-probabilities, wherever they lie."""
    return torch.logaddexp(first + torch.log1p(-w), second + w.log())


def holdout_of(data: RobustnessData, method: str) -> EvaluationSet:
    """The hold-out.

    Raises:
        UserError: nothing is held out.
    """
    data.setup("validate")
    found = next((one for one in data.sets if one.name == "holdout"), None)
    if found is None:
        raise UserError(
            f"data.holdout=0: method={method} takes temperatures from the hold-out. Leave data.holdout to its default"
        )
    return found


def logits_of(model: Classifier, features: Float[Tensor, "images features"]) -> Float[Tensor, "images classes"]:
    """Logits of images whose features are known."""
    with torch.inference_mode():
        return torch.cat([model.classify(part) for part in features.split(CHUNK)]).clone()


def is_right(logits: Float[Tensor, "images classes"], labels: Int64[Tensor, " images"]) -> Bool[Tensor, " images"]:
    """Whether the best class is the label."""
    return logits.argmax(1) == labels


def confident_temperature(logits: Float[Tensor, "images classes"], right: Bool[Tensor, " images"]) -> float:
    """The temperature T at which the mean of max softmax(logits / T) is the accuracy, within 1/100…100, in float64."""
    logits, accuracy = logits.double(), float(right.double().mean())

    def gap(log_t: float) -> float:
        return float((logits / math.exp(log_t)).softmax(1).amax(1).mean()) - accuracy

    bound = math.log(100)
    if gap(-bound) <= 0 or gap(bound) >= 0:  # no T makes it so confident, or so little
        return math.exp(-bound if gap(-bound) <= 0 else bound)
    found: Any = brentq(gap, -bound, bound, xtol=1e-12)
    return math.exp(found)
