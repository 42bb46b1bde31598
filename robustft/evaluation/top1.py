"""Top-1 accuracy when only some classes may be predicted, or when several predictions are right.

Every evaluation set is described by one boolean table `correct[label, class]`:

- a plain set has the identity,
- a set with 200 of 1000 classes (ImageNet-R, -A) has one-hot rows at the classes it keeps,
- ObjectNet, whose labels map to one or more ImageNet classes, has rows with several True.

A class that is right for no label is none the set knows: its logit is removed before the argmax. (Left in, it
would count as an error whenever an absent class wins, the classic mistake with ImageNet-R and -A.)
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torchmetrics import Metric

from robustft.evaluation.results import Score


def predict(logits: Float[Tensor, "batch classes"], allowed: Bool[Tensor, " classes"]) -> Int64[Tensor, " batch"]:
    """Choose the best of the `allowed` classes for each image, as an index in the full list of classes."""
    return logits.masked_fill(~allowed, -torch.inf).argmax(dim=-1)


class Top1(Metric):
    """Share of images whose best allowed class is right for their label.

    The states are two counts that are summed over processes, so the value is exact however the images are
    spread over them. `update` never waits for the device.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    hits: Int64[Tensor, ""]
    total: Int64[Tensor, ""]
    correct: Bool[Tensor, "labels classes"]

    def __init__(self, correct: Bool[Tensor, "labels classes"]) -> None:
        super().__init__()
        self.register_buffer("correct", correct.clone(), persistent=False)
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> None:
        """Count a batch. `labels` index the rows of `correct`."""
        self.hits += self.correct[labels, predict(logits, self.correct.any(dim=0))].sum()
        self.total += labels.numel()

    def compute(self) -> Float[Tensor, ""]:
        """Accuracy in 0…1 over all processes (NaN without images), on the CPU: MPS has no float64."""
        return self.hits.cpu().double() / self.total.cpu().double()

    def score(self, more: Mapping[str, float | None] | None = None) -> Score:
        """Accuracy and number of images over all processes, beside ``more``. Every process must call it."""
        with self.sync_context():
            hits, total = int(self.hits), int(self.total)
        return Score(top1=hits / total, n=total, more=more or {})
