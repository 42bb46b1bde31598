"""Knowledge distillation: cross-entropy on x, the student's and the teacher's softened logits brought together.

Hinton, Vinyals, Dean: Distilling the knowledge in a neural network, 2015. On the images as they are, or with a mask on
the counterfactual samples; the rest is the paper's method.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from robustft.counterfactual.distillation import logit_distance
from robustft.methods.counterfactual import CounterfactualFinetune
from robustft.models.classifier import Classifier


class Distil(CounterfactualFinetune):
    """L = CE(g(f(x)), y) + β · T² · KL(teacher ‖ student) of the class distributions on x_cf at temperature T > 0."""

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        *,
        beta: float,
        mask: Mapping[str, Any],
        fill: str,
        temperature: float,
    ) -> None:
        super().__init__(student, teacher, beta=beta, mask=mask, fill=fill)
        self.distance = partial(logit_distance, temperature=temperature)
