"""CaRot: FLYP, kept near an average of itself, with projections that neither overlap nor lose directions.

Oh, Lim, Kim, Han, Choi, Hong, Song: Towards calibrated robust fine-tuning of vision-language models, NeurIPS 2024. The
teacher is the exponential average that ``moving=ema`` keeps. With a mask student and teacher are compared on
counterfactual images.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robustft.counterfactual.distillation import encode_frozen
from robustft.counterfactual.fill import Counterfactual
from robustft.data.datamodule import RobustnessData
from robustft.methods.contrastive import Contrastive, Pairs, Seen
from robustft.methods.flyp import info_nce, similarities
from robustft.models.classifier import Classifier
from robustft.models.projections import image_projection, text_projection


class CaRot(Contrastive):
    """L = InfoNCE + w_c · ‖W_v W_tᵀ‖ + w_o · ‖W_vᵀ W_v − I‖ + w · SD, W_v and W_t the towers' projections.

    A term whose weight is 0 is not computed.

    Args:
        weight: w of self-distillation; with 0 there is no teacher.
        cross: w_c.
        orthogonal: w_o.

    Raises:
        UserError: a tower has no projection.
    """

    teaches_texts = True

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        data: RobustnessData,
        *,
        mask: Mapping[str, Any],
        fill: str,
        weight: float,
        cross: float,
        orthogonal: float,
    ) -> None:
        super().__init__(student, teacher if weight else None, data, mask, fill)
        self.weight, self.cross, self.orthogonal = weight, cross, orthogonal
        if cross or orthogonal:
            image_projection(student), text_projection(student)

    def taught(self, pairs: Pairs, sample: Counterfactual) -> Seen:
        return {} if self.teacher is None else {"images": encode_frozen(self.teacher, sample)}

    def forwards_of_teacher(self, text: float) -> float:
        return self.of_sample + text

    def objective(self, ours: Seen, theirs: Seen) -> dict[str, Float[Tensor, ""]]:
        student, scale = self.student, self.student.scale
        z = similarities(ours["images"], ours["texts"], scale)
        terms = {"infonce": info_nce(z)}
        loss = terms["infonce"]
        if self.cross:
            terms["cross"] = overlap(image_projection(student), text_projection(student))
            loss = loss + self.cross * terms["cross"]
        if self.orthogonal:
            terms["orthogonal"] = skewness(image_projection(student))
            loss = loss + self.orthogonal * terms["orthogonal"]
        if self.teacher is not None:
            seen = similarities(ours["counterfactuals"], ours["texts"], scale) if "counterfactuals" in ours else z
            target = similarities(theirs["images"], theirs["texts"], self.teacher.scale)
            terms["sd"] = self_distillation(seen, target)
            loss = loss + self.weight * terms["sd"]
        return {"loss": loss, **terms}


def self_distillation(z: Float[Tensor, "batch batch"], target: Float[Tensor, "batch batch"]) -> Float[Tensor, ""]:
    """Cross-entropy of the student's softmax to the teacher's, of rows and of columns: their sum, batch mean.

    Args:
        z: the student's similarities of images and prompts, times its scale.
        target: the teacher's, times its own.
    """
    rows, columns = ((t.softmax(1) * s.log_softmax(1)).sum(1).mean() for t, s in ((target, z), (target.T, z.T)))
    return -(rows + columns)


def overlap(
    image: Float[Tensor, "image_width features"], text: Float[Tensor, "text_width features"]
) -> Float[Tensor, ""]:
    """‖W_v W_tᵀ‖, the Frobenius norm."""
    return torch.linalg.matrix_norm(image @ text.T)


def skewness(image: Float[Tensor, "width features"]) -> Float[Tensor, ""]:
    """‖W_vᵀ W_v − I‖, the Frobenius norm: 0 where the projection's columns are orthonormal."""
    return torch.linalg.matrix_norm(image.T @ image - torch.eye(image.shape[1], dtype=image.dtype, device=image.device))
