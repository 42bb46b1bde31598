"""CLIPood: an image tower tuned against fixed class texts, with a margin for classes that mean something alike.

Shu, Guo, Wu, Wang, Wang, Long: CLIPood: generalizing CLIP to out-of-distributions, ICML 2023. The result is the average
of the whole trajectory (``moving=trajectory result=average``), kept in float32 where the public code keeps it in half
precision, which rounds small updates away.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustft.data.sets import Batch
from robustft.models.classifier import Classifier
from robustft.training.method import Method


class CLIPood(Method):
    """L = CE(s · (n(f)·t_c − λ · t_y·t_c), y) over the image tower, t_c the unit embeddings of the classes' texts.

    The margin is there in training alone. It is taken from the right class's logit too, where it is s λ.

    Args:
        student: with its text tower, which makes the head and is left out then.
        margin: λ, 0…1; with 0 it is cross-entropy with a frozen text head.
        template: the one prompt of a class.
    """

    margins: Float[Tensor, "classes classes"]

    def __init__(self, student: Classifier, margin: float, template: str) -> None:
        assert student.prompts is not None
        scale = float(student.scale.detach())
        student.prompts = replace(student.prompts, templates=[template])
        student.renew_head()
        model = student.without_text()
        model.head.requires_grad_(False)
        super().__init__(model)
        self.margin = margin
        self.register_buffer("margins", margins(model.head.weight.detach() / scale, scale, margin), persistent=False)

    def parameters_to_train(self) -> Sequence[nn.Parameter]:
        return [p for p in self.student.parameters() if p.requires_grad]

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        logits = self.student(batch.images)
        if self.margin:
            logits = logits - self.margins[batch.labels]
        ce = F.cross_entropy(logits, batch.labels)
        return self.log_terms(loss=ce, ce=ce)


def margins(texts: Float[Tensor, "classes features"], scale: float, margin: float) -> Float[Tensor, "classes classes"]:
    """s λ t_y·t_c: what the logit of class c is less by where y is right.

    Args:
        texts: unit embeddings of the classes.
    """
    return scale * margin * texts @ texts.T
