"""How well a map finds the object, where the true object masks are known.

A map has one value a patch and the truth one bool a pixel, so every number here is made from the COVERAGE of the
patches, the share of a patch's pixels that belong to the object. An intersection over union that is taken from
coverage is the one at pixel resolution, with each patch standing for all its pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustft.counterfactual.mask import object_mask

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
ON_OBJECT = 0.5  # of a patch's pixels: from here on the patch is on the object


@dataclass(frozen=True)
class Localisation:
    """Means over images, in 0…1.

    Attributes:
        pointing: share of images whose hottest patch is on the object (see ``on_object``).
        pointing_chance: the same for a patch drawn at random.
        touching: share of images whose hottest patch holds any pixel of the object, a much weaker demand.
        touching_chance: the same for a patch drawn at random.
        iou: by threshold, intersection over union of the object mask (map > threshold) with the object.
        ceiling: the largest intersection over union that a mask of whole patches can reach.
    """

    images: int
    pointing: float
    pointing_chance: float
    touching: float
    touching_chance: float
    iou: dict[float, float]
    ceiling: float


def localise(
    cam: Float[Tensor, "images patches"],
    coverage: Float[Tensor, "images patches"],
    thresholds: Sequence[float] = THRESHOLDS,
) -> Localisation:
    """Everything that is measured, for maps that are divided by their maximum."""
    return Localisation(
        images=len(cam),
        pointing=points_at(cam, on_object(coverage)).float().mean().item(),
        pointing_chance=on_object(coverage).float().mean().item(),
        touching=points_at(cam, coverage > 0).float().mean().item(),
        touching_chance=(coverage > 0).float().mean().item(),
        iou={threshold: iou(object_mask(cam, threshold), coverage).mean().item() for threshold in thresholds},
        ceiling=best_iou(coverage).mean().item(),
    )


def on_object(coverage: Float[Tensor, "images patches"]) -> Bool[Tensor, "images patches"]:
    """Patches at least half of whose pixels are the object's; of an object too thin for that, its fullest patches."""
    return (coverage >= coverage.amax(1, keepdim=True).clamp(max=ON_OBJECT)) & (coverage > 0)


def points_at(cam: Float[Tensor, "images patches"], target: Bool[Tensor, "images patches"]) -> Bool[Tensor, " images"]:
    """Play the pointing game (Zhang et al., 2016): whether the hottest patch is one of the target's."""
    return target.gather(1, cam.argmax(1, keepdim=True)).squeeze(1)


def iou(mask: Bool[Tensor, "images patches"], coverage: Float[Tensor, "images patches"]) -> Float[Tensor, " images"]:
    """Intersection over union of the patches in ``mask`` with the object, in pixels."""
    both = (coverage * mask).sum(1)
    either = torch.where(mask, 1.0, coverage).sum(1)
    return both / either.clamp(min=1e-12)


def best_iou(coverage: Float[Tensor, "images patches"]) -> Float[Tensor, " images"]:
    """Find the largest ``iou`` of any mask: that of the k fullest patches, for the best k."""
    fullest = coverage.sort(1, descending=True).values.cumsum(1)
    count = torch.arange(1, coverage.shape[1] + 1, device=coverage.device)
    total = coverage.sum(1, keepdim=True)
    return (fullest / (count + total - fullest).clamp(min=1e-12)).amax(1)
