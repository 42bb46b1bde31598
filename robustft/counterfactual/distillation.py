"""Student and teacher compared on the counterfactual sample, and whose map says where to look."""

from collections.abc import Callable, Mapping
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
Explain = Callable[[Classifier, Classifier, Tensor, Tensor], Explained]


def feature_distance(
    student: Classifier, teacher: Classifier, x_cf: Counterfactual, features: Tensor | None = None
) -> Float[Tensor, ""]:
    """MSE(f̂(x_cf), f(x_cf)), the mean over batch and feature dimensions.

    Args:
        features: f(x_cf) where it is known already (x_cf = x).
    """
    return F.mse_loss(*encode_both(student, teacher, x_cf, features))


def direction_distance(
    student: Classifier, teacher: Classifier, x_cf: Counterfactual, features: Tensor | None = None
) -> Float[Tensor, ""]:
    """Mean over batch and dimensions of (n(f̂(x_cf)) − n(f(x_cf)))², n L2 normalisation."""
    return between_directions(*encode_both(student, teacher, x_cf, features))


def between_directions(
    features: Float[Tensor, "batch features"], target: Float[Tensor, "batch features"]
) -> Float[Tensor, ""]:
    """Mean over batch and dimensions of (n(f) − n(f̂))²; in d dimensions ‖n(f) − n(f̂)‖² is d times that."""
    return F.mse_loss(directions(features), directions(target))


def directions(features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
    """n(f): L2-normalised features, in float32 or better also under autocast."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def logit_distance(
    student: Classifier,
    teacher: Classifier,
    x_cf: Counterfactual,
    features: Tensor | None = None,
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """T² · KL(teacher ‖ student) of the softened class distributions on x_cf (Hinton et al., 2015), batch mean."""
    ours, theirs = encode_both(student, teacher, x_cf, features)
    logits, target = student.classify(ours) / temperature, teacher.classify(theirs).detach() / temperature
    divergence = F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def encode_both(
    student: Classifier, teacher: Classifier, x_cf: Counterfactual, features: Tensor | None = None
) -> tuple[Float[Tensor, "batch features"], Float[Tensor, "batch features"]]:
    """f(x_cf), and f̂(x_cf) without a graph.

    Args:
        features: f(x_cf) where it is known already (x_cf = x).
    """
    target = encode_frozen(teacher, x_cf)
    return student.encode(*x_cf) if features is None else features, target


def encode_frozen(teacher: Classifier, x_cf: Counterfactual) -> Float[Tensor, "batch features"]:
    """f̂(x_cf) without a graph."""
    with torch.inference_mode():
        features = teacher.encode(*x_cf)
    return features.clone()  # an inference tensor could not be saved for the student's backward pass


def make_masking(mask: Mapping[str, Any], fill: str, student: Classifier) -> tuple[Mask | None, Fill]:
    """The configured mask, None where images are left as they are, and the fill that suits it.

    Args:
        mask: kind, threshold and rate.
        fill: none, single or multi.
    """
    kind = mask["kind"]
    if kind == "none":
        return None, make_fill("none", 1)
    drops_tokens = kind == "random" and fill == "none"
    made = make_mask(kind, student.patches, threshold=mask["threshold"], rate=mask["rate"], exact=drops_tokens)
    kept = kept_patches(student.patches, mask["rate"]) if drops_tokens else None
    return made, make_fill(fill, student.patch_size, kept)


def forwards_of_map(mask: Mapping[str, Any], student: Classifier) -> float:
    """What the map for a mask costs, in forward passes of the image tower: a backward pass to activations is one.

    The student's forward pass is there for the cross-entropy, a teacher's is not. Of the last ``layers`` alone the
    backward pass goes no further.
    """
    if mask["kind"] in ("none", "random") or mask["source"] == "truth":
        return 0.0
    layers = max(1, len(student.tower.attentions()))
    seen = layers if mask["layers"] is None else min(mask["layers"], layers)
    return (mask["source"] == "teacher") + (seen / layers if mask["cam"] == "relevance" else 1 / layers)


def forwards_of_sample(mask: Mapping[str, Any], fill: str, student: Classifier) -> float:
    """What encoding the counterfactual sample once costs: patches that are left out cost nothing."""
    if mask["kind"] != "random" or fill != "none":
        return 1.0
    prefix = student.tower.prefix
    return (prefix + kept_patches(student.patches, mask["rate"])) / (prefix + student.patches)


def make_explain(mask: Mapping[str, Any]) -> Explain:
    """(student, teacher, images, labels) → the student's features and logits and, if the mask needs one, the map.

    Args:
        mask: kind, cam, layers, and source: whose map it is; the true one is never drawn, see ``true_maps``.
    """
    if mask["kind"] in ("none", "random") or mask["source"] == "truth":
        return lambda student, teacher, images, labels: (*classify(student, images), None)
    draw = make_cam(mask["cam"], mask["layers"])
    if mask["source"] == "student":
        return lambda student, teacher, images, labels: draw(student, images, labels)
    return lambda student, teacher, images, labels: (
        *classify(student, images),
        draw(teacher, images, labels)[-1],
    )


def classify(student: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits."""
    features = student.encode(images)
    return features, student.classify(features)
