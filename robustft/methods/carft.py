"""CAR-FT: what the model says about the context of an image, not about its class, stays that of the teacher.

Mao, Chen, Zhang, Xue: Context-aware robust fine-tuning, IJCV 2024. No official code is public; the weights of contexts
are those of FD-Align (NeurIPS 2023) before it clusters them.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustft.common.errors import UserError
from robustft.counterfactual.distillation import directions, encode_both
from robustft.counterfactual.fill import Counterfactual
from robustft.methods.counterfactual import CounterfactualFinetune
from robustft.models.classifier import Classifier


class CARFT(CounterfactualFinetune):
    """L = CE(g(f(x)), y) + β · KL(p̂ ‖ p), p = softmax over contexts of n(f(x_cf)) · s ctx, by the pre-trained s.

    Args:
        contexts: s ctx_k, a row for each prompt template.

    Raises:
        UserError: there is one template alone.
    """

    contexts: Tensor

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        contexts: Float[Tensor, "contexts features"],
        *,
        beta: float,
        mask: Mapping[str, Any],
        fill: str,
    ) -> None:
        if beta and len(contexts) < 2:
            raise UserError(
                "method=carft compares what is said of the prompt templates, and there is one alone: give several"
                " (data.templates=imagenet)"
            )
        super().__init__(student, teacher, beta=beta, mask=mask, fill=fill)
        self.register_buffer("contexts", contexts, persistent=False)
        self.distance = self._distance

    def _distance(
        self, student: Classifier, teacher: Classifier, x_cf: Counterfactual, features: Tensor | None
    ) -> Float[Tensor, ""]:
        return context_divergence(*encode_both(student, teacher, x_cf, features), self.contexts)


def context_divergence(
    features: Float[Tensor, "batch features"],
    target: Float[Tensor, "batch features"],
    contexts: Float[Tensor, "contexts features"],
) -> Float[Tensor, ""]:
    """Mean over the batch of KL(softmax(n(f̂) Cᵀ) ‖ softmax(n(f) Cᵀ)).

    Args:
        contexts: C, the scale in it.
    """
    with torch.autocast(features.device.type, enabled=False):
        ours, theirs = (F.log_softmax(directions(value) @ contexts.T, dim=-1) for value in (features, target))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
