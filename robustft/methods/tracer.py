"""TRACER: FLYP, distilled from an average of its whole trajectory by features, relations and both mixed.

TRACER, ICML 2026. The teacher is the average that ``moving=trajectory`` keeps. Weights are those of its published
ablations. With a mask student and teacher are compared on counterfactual images; the terms that ask for an image's own
prompt (InfoNCE and ICL) stay with the images as they are, since a counterfactual one does not show its class.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustft.counterfactual.distillation import encode_frozen
from robustft.counterfactual.fill import Counterfactual
from robustft.data.datamodule import RobustnessData
from robustft.methods.carot import overlap
from robustft.methods.contrastive import Contrastive, Pairs, Seen
from robustft.methods.flyp import info_nce, of_units
from robustft.models.classifier import Classifier
from robustft.models.projections import image_projection, text_projection


class TRACER(Contrastive):
    """L = InfoNCE + λ · (w_f · FD + w_r · CRD + w_i · ICL + w_x · XKD) + w_c · ‖W_v W_tᵀ‖.

    Of unit features u, v of images and prompts, the teacher's û, v̂, and similarities times scale: FD is the mean
    squared difference of u and û plus that of v and v̂; CRD the KL divergence of the student's softmax of u vᵀ from the
    teacher's of û v̂ᵀ; ICL the cross-entropy of the student's queries among the teacher's keys (u v̂ᵀ, v ûᵀ); XKD the KL
    divergence of those same from the teacher's own. A term whose weight is 0 is not computed.

    Args:
        weight: λ; with 0 there is no teacher.
        features: w_f. FD is a mean over dimensions: 2000 at 512 of them is 3.9 times the squared distance.
        relations: w_r.
        interactive: w_i.
        mixed: w_x.
        cross: w_c.

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
        features: float,
        relations: float,
        interactive: float,
        mixed: float,
        cross: float,
    ) -> None:
        super().__init__(student, teacher if weight else None, data, mask, fill)
        self.weight, self.cross = weight, cross
        self.weights = {"fd": features, "crd": relations, "icl": interactive, "xkd": mixed}
        if cross:
            image_projection(student), text_projection(student)

    def taught(self, pairs: Pairs, sample: Counterfactual) -> Seen:
        if self.teacher is None:
            return {}
        found = {"images": encode_frozen(self.teacher, sample)}
        if self.mask is not None and self.weights["icl"]:
            found["factual"] = encode_frozen(self.teacher, Counterfactual(pairs.images))
        return found

    def forwards_of_teacher(self, text: float) -> float:
        factual = self.mask is not None and bool(self.weights["icl"])
        return self.of_sample + text + factual

    def objective(self, ours: Seen, theirs: Seen) -> dict[str, Float[Tensor, ""]]:
        student, scale = self.student, self.student.scale
        ours, theirs = _units(ours), _units(theirs)
        z = of_units(ours["images"], ours["texts"], scale)
        terms = {"infonce": info_nce(z)}
        loss = terms["infonce"]
        if self.teacher is not None:
            z_cf = of_units(ours["counterfactuals"], ours["texts"], scale) if "counterfactuals" in ours else z
            terms |= self.distillation(ours, theirs, z_cf, self.teacher.scale)
            loss = loss + self.weight * sum(w * terms[name] for name, w in self.weights.items() if w)
        if self.cross:
            terms["cross"] = overlap(image_projection(student), text_projection(student))
            loss = loss + self.cross * terms["cross"]
        return {"loss": loss, **terms}

    def distillation(
        self, ours: Seen, theirs: Seen, z: Float[Tensor, "batch batch"], their_scale: Float[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        """The four terms that have a weight, of unit features.

        Args:
            z: the student's similarities of (counterfactual) images and prompts, times its scale.
            their_scale: the teacher's.
        """
        scale, weights = self.student.scale, self.weights
        images, texts = ours.get("counterfactuals", ours["images"]), ours["texts"]
        their_images, their_texts = theirs["images"], theirs["texts"]
        terms = {}
        if weights["fd"]:
            terms["fd"] = F.mse_loss(images, their_images) + F.mse_loss(texts, their_texts)
        target = of_units(their_images, their_texts, their_scale)
        rows, columns = target.log_softmax(1), target.T.log_softmax(1)
        if weights["crd"]:
            terms["crd"] = (divergence(rows, z) + divergence(columns, z.T)) / 2
        if weights["icl"] or weights["xkd"]:
            to_texts, to_images = of_units(images, their_texts, scale), of_units(texts, their_images, scale)
        if weights["icl"]:
            factual = "counterfactuals" not in ours
            own = to_texts if factual else of_units(ours["images"], their_texts, scale)
            back = to_images if factual else of_units(texts, theirs["factual"], scale)
            terms["icl"] = (own_pair(own) + own_pair(back)) / 2
        if weights["xkd"]:
            terms["xkd"] = (divergence(rows, to_texts) + divergence(columns, to_images)) / 2
        return terms


def _units(seen: Seen) -> Seen:
    """Features by name, of unit norm; labels stay."""
    return {name: F.normalize(value, dim=-1) if value.is_floating_point() else value for name, value in seen.items()}


def divergence(target: Float[Tensor, "batch keys"], z: Float[Tensor, "batch keys"]) -> Float[Tensor, ""]:
    """KL(p ‖ softmax(z)) of rows, batch mean; ``target`` is log p."""
    return F.kl_div(z.log_softmax(1), target, reduction="batchmean", log_target=True)


def own_pair(z: Float[Tensor, "batch batch"]) -> Float[Tensor, ""]:
    """Cross-entropy of rows to the diagonal."""
    return -z.log_softmax(1).diagonal().mean()
