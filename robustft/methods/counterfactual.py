"""The paper's method: cross-entropy on x, the teacher's features on the masked and refilled x_cf.

Xiao, Tang, Wei, Liu, Lin: Masked Images Are Counterfactual Samples for Robust Fine-tuning, CVPR 2023. With
``mask=none`` it is feature distillation (FD) on the images as they are.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustft.counterfactual.distillation import (
    Distance,
    classify,
    direction_distance,
    feature_distance,
    forwards_of_map,
    forwards_of_sample,
    make_explain,
    make_masking,
)
from robustft.counterfactual.fill import Counterfactual
from robustft.counterfactual.teacher_maps import teacher_maps
from robustft.counterfactual.true_maps import true_maps
from robustft.data.sets import Batch
from robustft.models.classifier import Classifier
from robustft.training.method import Method
from robustft.training.recipe import Training

log = logging.getLogger(__name__)


class CounterfactualFinetune(Method):
    """L = CE(g(f(x)), y) + β · MSE(f̂(x_cf), f(x_cf)), with the frozen teacher's features f̂.

    Args:
        beta: β; with 0 there is no second term, and no teacher.
        mask: kind (none, random, object or context), threshold or rate, cam, source, layers; see conf/mask.
        fill: none, single or multi.
        normalised: compare the directions of features, which are what a classifier sees.

    Attributes:
        explain: (student, teacher, images, labels) → the student's features and logits and, if needed, the map.
        mask: None leaves the images as they are; x_cf is x.
        distance: MSE(f̂, f), or what a subclass compares in its place.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        *,
        beta: float,
        mask: Mapping[str, Any],
        fill: str,
        normalised: bool = False,
    ) -> None:
        super().__init__(student, teacher if beta else None)
        self.beta, self.options, self.fill_kind = beta, dict(mask), fill
        self.explain = make_explain(mask)
        self.mask, self.fill = make_masking(mask, fill, student)
        self.distance: Distance = direction_distance if normalised else feature_distance
        self.maps: Float[Tensor, "images patches"] | None = None

    def prepare(self, training: Training) -> Training:
        """A frozen teacher's maps of images that stay never change: they are taken once, if an epoch is trained. The
        true ones are known.
        """
        if self.teacher is not None and self.options["source"] == "truth":
            self.maps = true_maps(training.data, self.student.grid)
        moves = training.moving is not None and training.moving.teaches
        if self.teacher is None or self.options["source"] != "teacher" or moves:
            return training
        if training.data.augments:
            log.info("the teacher's maps are taken in every step: with augmentation the images are others each time")
        else:
            self.maps = teacher_maps(self.teacher, training, self.options)
        return training

    def forwards(self, batch: Batch) -> float:
        if self.teacher is None:
            return 3.0
        if self.mask is None:
            return 4.0
        of_map = 0.0 if self.maps is not None else forwards_of_map(self.options, self.student)
        return 3 + of_map + 4 * forwards_of_sample(self.options, self.fill_kind, self.student)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.maps is not None:
            self.maps = self.maps.to(self.device)  # at every step a copy would make the host wait for the device

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """The loss on a batch.

        Cross-entropy is back-propagated before x_cf is encoded: x's graph is freed first, which halves the memory.
        """
        if self.teacher is None:
            ce = F.cross_entropy(self.student(batch.images), batch.labels)
            return self.log_terms(loss=ce, ce=ce)
        if self.mask is None:
            return self._factual_step(batch)
        x, y, random = batch.images, batch.labels, self.random(batch_idx)
        student, teacher = self.student, self.teacher

        features, logits, cam = self._look(batch)  # one forward of x and the CAM
        ce = F.cross_entropy(logits, y)
        extra = self._disagreement(Counterfactual(x), features.detach())
        ce = self.back_propagate(ce)
        mask = self.mask(len(x), cam, random)  # which patches to replace
        x_cf = self.fill(x, mask, random)  # the counterfactual sample
        distance = self.distance(student, teacher, x_cf, None)
        extra |= self._disagreement(x_cf, None, distance)
        waited_for = 0 * sum(p.sum() for p in student.head.parameters())  # DDP waits for all parameters
        loss = ce + self.beta * (distance + waited_for)
        return self.log_terms(loss, ce=ce, distance=distance, masked=mask.float().mean(), also=extra)

    def _factual_step(self, batch: Batch) -> Float[Tensor, ""]:
        """Without a mask x_cf is x, which is encoded once."""
        assert self.teacher is not None
        x_cf = Counterfactual(batch.images)
        features, logits, _ = self._look(batch)
        ce = F.cross_entropy(logits, batch.labels)
        extra = self._disagreement(x_cf, features.detach())
        distance = self.distance(self.student, self.teacher, x_cf, features)
        extra |= self._disagreement(x_cf, None, distance)
        return self.log_terms(ce + self.beta * distance, ce=ce, distance=distance, also=extra)

    def _look(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """The student's features and logits of x, and the map."""
        assert self.teacher is not None
        if self.maps is None:
            return self.explain(self.student, self.teacher, batch.images, batch.labels)
        return *classify(self.student, batch.images), self.maps[batch.indices]

    def _disagreement(
        self, sample: Counterfactual, features: Tensor | None, distance: Tensor | None = None
    ) -> dict[str, Tensor]:
        """MSE(f̂, f) where Lightning logs, by name: on x one more forward of the teacher, on x_cf where the loss has
        another distance.
        """
        if not self.measures():
            return {}
        assert self.teacher is not None
        name = "disagreement_x" if distance is None else "disagreement_x_cf"
        if distance is not None and self.distance is feature_distance:
            return {name: distance}
        with torch.no_grad():
            return {name: feature_distance(self.student, self.teacher, sample, features)}
