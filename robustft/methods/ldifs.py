"""LDIFS: the tokens at several depths stay those of the teacher.

Mukhoti, Gal, Torr, Dokania: Fine-tuning can cripple your foundation model; preserving features may be the solution,
TMLR 2024.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from robustft.counterfactual.fill import Counterfactual
from robustft.data.sets import Batch
from robustft.methods.counterfactual import CounterfactualFinetune
from robustft.models.classifier import Classifier
from robustft.models.work import flops

EPSILON = 1e-10  # added to lengths
States = Sequence[Float[Tensor, "batch tokens channels"]]


class LDIFS(CounterfactualFinetune):
    """L = CE(g(f(x)), y) + β · D, D the mean over depths, images, tokens and channels of (n(h) − n(ĥ))².

    h are all tokens before the blocks and after each quarter of them, of x_cf. Without a mask the student's forward
    pass is the one that the cross-entropy is of.

    Args:
        axis: what n normalises along. "tokens": each channel over the tokens, as the published code does it.
            "channels": each token over its channels, as was presumably meant; D is smaller then, by about the number of
            channels over that of tokens (15 for ViT-B/32), and β has to be larger by that.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        *,
        beta: float,
        mask: Mapping[str, Any],
        fill: str,
        axis: str = "tokens",
    ) -> None:
        super().__init__(student, teacher, beta=beta, mask=mask, fill=fill)
        self.axis = axis
        self.distance = self._distance

    def forwards(self, batch: Batch) -> float:
        """The last block runs for all tokens here, where features need the class token's alone."""
        needed = super().forwards(batch)
        if self.teacher is None:
            return needed
        encode, states = self.student.encode, self.student.encode_with_states
        whole = flops(lambda: states(batch.images)[0]) / flops(lambda: encode(batch.images))
        factual = 0 if self.mask is None else 3
        return factual + (needed - factual) * whole

    def _factual_step(self, batch: Batch) -> Float[Tensor, ""]:
        assert self.teacher is not None
        x_cf = Counterfactual(batch.images)
        features, states = self.student.encode_with_states(*x_cf)
        ce = F.cross_entropy(self.student.classify(features), batch.labels)
        distance = states_distance(states, self._taught(self.teacher, x_cf), self.axis)
        extra = self._disagreement(x_cf, features.detach())
        return self.log_terms(ce + self.beta * distance, ce=ce, distance=distance, also=extra)

    def _distance(
        self, student: Classifier, teacher: Classifier, x_cf: Counterfactual, features: Tensor | None
    ) -> Float[Tensor, ""]:
        ours, states = student.encode_with_states(*x_cf)
        hidden = None if x_cf.masked is None else F.pad(x_cf.masked, (student.tower.prefix, 0))
        waited_for = 0 * ours.sum()  # DDP waits for all parameters, those behind the last tokens too
        return states_distance(states, self._taught(teacher, x_cf), self.axis, hidden) + waited_for

    def _taught(self, teacher: Classifier, x_cf: Counterfactual) -> States:
        with torch.no_grad():
            return teacher.encode_with_states(*x_cf)[1]


def states_distance(
    states: States, targets: States, axis: str, hidden: Bool[Tensor, "batch tokens"] | None = None
) -> Float[Tensor, ""]:
    """Mean over depths, images, tokens and channels of (n(h) − n(ĥ))².

    Args:
        axis: tokens or channels: along which n is taken.
        hidden: tokens that do not exist: they count in no length and no mean. Each image counts the same, however many
            it has, so that the loss is the same on any number of devices.
    """
    terms = [_at_one_depth(ours, theirs, axis, hidden) for ours, theirs in zip(states, targets, strict=True)]
    return torch.stack(terms).mean()


def _at_one_depth(ours: Tensor, theirs: Tensor, axis: str, hidden: Tensor | None) -> Float[Tensor, ""]:
    along = {"tokens": 1, "channels": 2}[axis]

    def normalised(tokens: Tensor) -> Tensor:
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        if hidden is not None:
            tokens = tokens.masked_fill(hidden.unsqueeze(-1), 0.0)
        return tokens / (torch.linalg.vector_norm(tokens, dim=along, keepdim=True) + EPSILON)

    squares = (normalised(ours) - normalised(theirs)).square()
    if hidden is None:
        return squares.mean()
    return (squares.sum((1, 2)) / ((~hidden).sum(1) * squares.shape[-1])).mean()  # of each image, on any device
