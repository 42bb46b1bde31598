"""OSE: the probabilities of the zero-shot and the fine-tuned model, averaged. Two models at inference."""

import torch
from jaxtyping import Float
from torch import Tensor

from robustft.methods.ensembles import Ensemble
from robustft.models.classifier import Classifier


class OutputSpaceEnsemble(Ensemble):
    """p = (1 − α) · p_zeroshot + α · p_checkpoint.

    Args:
        alpha: α, 0…1.
    """

    def __init__(self, zeroshot: Classifier, checkpoint: Classifier, alpha: float) -> None:
        super().__init__(zeroshot, checkpoint)
        self.alpha = alpha

    def weight(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        return torch.full((len(features),), self.alpha, device=features.device)
