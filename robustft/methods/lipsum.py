"""Lipsum-FT: the logits of random texts stay those of the teacher.

Nam, Heo, Lee: Lipsum-FT: Robust fine-tuning of zero-shot models using random text guidance, ICLR 2024.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.counterfactual.distillation import directions, encode_both
from robustft.counterfactual.fill import Counterfactual
from robustft.data.sets import Batch
from robustft.methods.counterfactual import CounterfactualFinetune
from robustft.models.classifier import Classifier
from robustft.models.frozen_text import FrozenText
from robustft.models.work import share
from robustft.training.lightning_private import is_attached
from robustft.training.method import ParameterGroup


class LipsumFT(CounterfactualFinetune):
    """L = CE(g(f(x)), y) + β · mean_i 1/(2M) Σ_m (s n(f_i)·t_m − s n(f̂_i)·t_m)², t_m the embeddings of random texts.

    The texts are new at every step, the same for all its images; micro-batches and devices share them.

    Args:
        text: the pre-trained text tower.
        texts: M, of a step.
        length: tokens of a text, besides its start and end.
        unit_head: train the head as if it had unit rows, s outside and no bias, as the published one: AdamW moves such
            weights by the learning rate, hence the head here by s times that.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        text: FrozenText,
        *,
        beta: float,
        mask: Mapping[str, Any],
        fill: str,
        texts: int = 80,
        length: int = 8,
        unit_head: bool = True,
    ) -> None:
        super().__init__(student, teacher, beta=beta, mask=mask, fill=fill)
        self.text, self.texts, self.length, self.unit_head = text, texts, length, unit_head
        text.random_tokens(texts, length, generator("random texts", 0))  # refused now, if it cannot be done
        self.distance = self._distance
        self.drawn: tuple[int, Tensor] | None = None  # the step, and its texts
        if unit_head:
            bias = student.head.bias
            if not torch.allclose(bias, bias.mean()):  # the same for all classes means nothing
                raise UserError(
                    "method.unit_head=true: the head has no bias, and the model that training starts from has one. Add"
                    " method.unit_head=false"
                )
            torch.nn.init.zeros_(bias).requires_grad_(False)

    def parameters_to_train(self) -> Sequence[ParameterGroup]:
        head = [p for p in self.student.head.parameters() if p.requires_grad]
        of_head = {id(p) for p in head}
        rest: ParameterGroup = {"params": [p for p in self.student.parameters() if id(p) not in of_head]}
        if not self.unit_head:
            return [rest, {"params": head}]
        scale = self.text.scale
        decay = self.recipe.adam["weight_decay"] / scale  # decay is times the learning rate
        return [rest, {"params": head, "lr_scale": scale, "weight_decay": decay, "decay_scale": 1 / scale}]

    def forwards(self, batch: Batch) -> float:
        if self.teacher is None:
            return super().forwards(batch)
        random = generator("random texts", 0, device=batch.images.device)
        texts = self.text.random_tokens(self.texts, self.length, random)
        text = share(lambda: self.text.encode(texts), lambda: self.student.encode(batch.images))
        return super().forwards(batch) + text

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.teacher is not None:
            self.text.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        step = self.trainer.global_step if is_attached(self) else batch_idx
        if self.teacher is not None and (self.drawn is None or self.drawn[0] != step):
            random = generator("random texts", self.seed, step, device=self.device)
            self.drawn = step, self.text.encode(self.text.random_tokens(self.texts, self.length, random))
        return super().training_step(batch, batch_idx)

    def _distance(
        self, student: Classifier, teacher: Classifier, x_cf: Counterfactual, features: Tensor | None
    ) -> Float[Tensor, ""]:
        assert self.drawn is not None
        return text_difference(*encode_both(student, teacher, x_cf, features), self.drawn[1], self.text.scale)


def text_difference(
    features: Float[Tensor, "batch features"],
    target: Float[Tensor, "batch features"],
    texts: Float[Tensor, "texts features"],
    scale: float,
) -> Float[Tensor, ""]:
    """Mean over the batch of 1/(2M) Σ_m (s n(f)·t_m − s n(f̂)·t_m)²: s is inside of the square.

    Args:
        texts: t_m, of unit norm.
        scale: s.
    """
    with torch.autocast(features.device.type, enabled=False):
        moved = directions(features) - directions(target)
        moved = (scale * moved) @ texts.to(moved.dtype).T
    return moved.square().mean() / 2
