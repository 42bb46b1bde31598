"""Vanilla fine-tuning: every weight, cross-entropy alone."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustft.data.sets import Batch
from robustft.models.classifier import Classifier
from robustft.training.method import Method


class Finetune(Method):
    """L = CE(g(f(x)), y)."""

    def __init__(self, student: Classifier) -> None:
        super().__init__(student)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        ce = F.cross_entropy(self.student(batch.images), batch.labels)
        return self.log_terms(loss=ce, ce=ce)
