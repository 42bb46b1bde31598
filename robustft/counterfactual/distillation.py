"""What the teacher says of the counterfactual sample: where to look, what to replace, how to compare."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustft.counterfactual.cam import make_cam
from robustft.counterfactual.fill import Counterfactual, Fill, make_fill
from robustft.counterfactual.mask import Mask, kept_patches, make_mask
from robustft.models.classifier import Classifier

Distance = Callable[[Classifier, Classifier, Counterfactual, Tensor | None], Float[Tensor, ""]]
Explained = tuple[Tensor, Tensor, Tensor | None]
Explain = Callable[[Classifier, Classifier, Tensor, Tensor, Tensor | None], Explained]


@dataclass(frozen=True)
class Distillation:
    """The second term of the loss, β · distance(student, teacher) on x_cf.

    Attributes:
        explain: (student, teacher, images, labels, positions of the images in the training set) → the student's
            features and logits and, if needed, the map.
        mask: None leaves the images as they are; x_cf is x.
        distance: see ``feature_distance`` and ``logit_distance``.
    """

    teacher: Classifier
    beta: float
    explain: Explain
    mask: Mask | None
    fill: Fill
    distance: Distance

    def with_maps(self, cams: Float[Tensor, "images patches"]) -> "Distillation":
        """The same with maps that are known already, one for every training image."""
        here = cams

        def explain(
            student: Classifier, _teacher: Classifier, images: Tensor, _labels: Tensor, indices: Tensor | None
        ) -> Explained:
            nonlocal here
            here = here.to(images.device)  # once: a copy at every step would make the host wait for the device
            return *_classify(student, images), here[indices]

        return replace(self, explain=explain)


def make_distillation(
    teacher: Classifier, *, beta: float, mask: Mapping[str, Any], fill: str, temperature: float | None = None
) -> Distillation:
    """The configured distillation; with a ``temperature`` (T > 0) it compares logits, without one features."""
    kind, patches = mask["kind"], teacher.patches
    drops_tokens = kind == "random" and fill == "none"
    return Distillation(
        teacher=teacher,
        beta=beta,
        explain=_make_explain(mask),
        mask=None
        if kind == "none"
        else make_mask(kind, patches, threshold=mask["threshold"], rate=mask["rate"], exact=drops_tokens),
        fill=make_fill(fill, teacher.patch_size, kept_patches(patches, mask["rate"]) if drops_tokens else None),
        distance=feature_distance if temperature is None else partial(logit_distance, temperature=temperature),
    )


def feature_distance(
    student: Classifier, teacher: Classifier, x_cf: Counterfactual, features: Tensor | None = None
) -> Float[Tensor, ""]:
    """MSE(f̂(x_cf), f(x_cf)), the mean over batch and feature dimensions.

    Args:
        features: f(x_cf) where it is known already (x_cf = x).
    """
    target = encode_frozen(teacher, x_cf)
    return F.mse_loss(student.encode(*x_cf) if features is None else features, target)


def logit_distance(
    student: Classifier,
    teacher: Classifier,
    x_cf: Counterfactual,
    features: Tensor | None = None,
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """T² · KL(teacher ‖ student) of the softened class distributions on x_cf (Hinton et al., 2015), batch mean."""
    target = teacher.classify(encode_frozen(teacher, x_cf)).detach() / temperature
    logits = student.classify(student.encode(*x_cf) if features is None else features) / temperature
    divergence = F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def encode_frozen(teacher: Classifier, x_cf: Counterfactual) -> Float[Tensor, "batch features"]:
    """f̂(x_cf) without a graph."""
    with torch.inference_mode():
        features = teacher.encode(*x_cf)
    return features.clone()  # an inference tensor could not be saved for the student's backward pass


def _make_explain(mask: Mapping[str, Any]) -> Explain:
    if mask["kind"] in ("none", "random"):
        return lambda student, teacher, images, labels, indices: (*_classify(student, images), None)
    draw = make_cam(mask["cam"], mask["layers"])
    if mask["source"] == "student":
        return lambda student, teacher, images, labels, indices: draw(student, images, labels)
    return lambda student, teacher, images, labels, indices: (
        *_classify(student, images),
        draw(teacher, images, labels)[-1],
    )


def _classify(student: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    features = student.encode(images)
    return features, student.classify(features)
