"""FLYP: fine-tune like you pre-train, with the contrastive loss of images and prompts of their class.

Goyal, Kumar, Garg, Kolter, Raghunathan: Finetune like you pretrain, CVPR 2023. With ``beta`` above 0 the term of
counterfactual images is added: their features are kept near those of the frozen teacher.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustft.counterfactual.distillation import encode_frozen
from robustft.counterfactual.fill import Counterfactual
from robustft.data.datamodule import RobustnessData
from robustft.methods.contrastive import Contrastive, Pairs, Seen
from robustft.models.classifier import Classifier


class FLYP(Contrastive):
    """L = InfoNCE(u, v) + β · MSE(f̂(x_cf), f(x_cf)), u and v the unit features of images and their prompts.

    Args:
        beta: β; with 0 there is no second term, and no teacher.
        positives: "diagonal": every image has its own prompt as its only right one; "class": all prompts of the batch
            that are of its class.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        data: RobustnessData,
        *,
        beta: float,
        mask: Mapping[str, Any],
        fill: str,
        positives: str,
    ) -> None:
        super().__init__(student, teacher if beta else None, data, mask, fill)
        self.beta, self.by_class = beta, positives == "class"

    def taught(self, pairs: Pairs, sample: Counterfactual) -> Seen:
        return {} if self.teacher is None else {"counterfactuals": encode_frozen(self.teacher, sample)}

    def forwards_of_teacher(self, text: float) -> float:
        return self.of_sample

    def objective(self, ours: Seen, theirs: Seen) -> dict[str, Float[Tensor, ""]]:
        z = similarities(ours["images"], ours["texts"], self.student.scale)
        infonce = info_nce(z, theirs["labels"] if self.by_class else None)
        if self.teacher is None:
            return {"loss": infonce, "infonce": infonce}
        distance = F.mse_loss(ours.get("counterfactuals", ours["images"]), theirs["counterfactuals"])
        return {"loss": infonce + self.beta * distance, "infonce": infonce, "distance": distance}


def similarities(
    images: Float[Tensor, "batch features"], texts: Float[Tensor, "prompts features"], scale: Float[Tensor, ""]
) -> Float[Tensor, "batch prompts"]:
    """Return z = s · u vᵀ of features that are not normalised yet."""
    return of_units(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale)


def of_units(
    u: Float[Tensor, "batch features"], v: Float[Tensor, "prompts features"], scale: Float[Tensor, ""]
) -> Float[Tensor, "batch prompts"]:
    """Return z = s · u vᵀ."""
    return scale * u @ v.T


def info_nce(z: Float[Tensor, "batch batch"], labels: Int64[Tensor, " batch"] | None = None) -> Float[Tensor, ""]:
    """Average the cross-entropy of rows (images → prompts) and of columns (prompts → images).

    Args:
        z: similarities times scale; the pairs are on the diagonal.
        labels: targets are spread evenly over all pairs of the same class; None: the own pair alone is right.
    """
    if labels is None:
        own = torch.arange(len(z), device=z.device)
        return (F.cross_entropy(z, own) + F.cross_entropy(z.T, own)) / 2
    same: Bool[Tensor, "batch batch"] = labels[:, None] == labels
    targets = same.to(z.dtype) / same.sum(1, keepdim=True)
    return (F.cross_entropy(z, targets) + F.cross_entropy(z.T, targets)) / 2
