"""VRF: zero-shot and fine-tuned model mixed by how far an image is from what fine-tuning has won.

Zhu, Cui, Zhang: Robust fine-tuning of zero-shot models via variance reduction, NeurIPS 2024. The set V is of training
images that the fine-tuned model gets right and the zero-shot model wrong. Temperatures come from the hold-out, where
the public code takes them from the ID set that it reports.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustft.common.errors import UserError
from robustft.common.wording import counted
from robustft.data.datamodule import RobustnessData
from robustft.data.sets import Selection
from robustft.methods.ensembles import Encode, Ensemble, confident_temperature, holdout_of, is_right, logits_of
from robustft.models.classifier import Classifier


class VarianceReduction(Ensemble):
    """p = (1 − w) · p_zeroshot + w · p_tuned with w(x) = σ(−(d(x) − a) / b).

    d is the squared L2 distance of an image's unit feature (in the tuned model) to the K-th nearest in V.

    Args:
        won: features of V in the tuned model, not normalised.
        nearest: K.
        middle: a, where both models count the same.
        width: b.
    """

    won: Float[Tensor, "images features"]

    def __init__(
        self,
        zeroshot: Classifier,
        tuned: Classifier,
        temperatures: tuple[float, float],
        won: Float[Tensor, "images features"],
        nearest: int,
        middle: float,
        width: float,
    ) -> None:
        super().__init__(zeroshot, tuned, temperatures)
        self.register_buffer("won", F.normalize(won, dim=-1), persistent=False)
        self.nearest, self.middle, self.width = nearest, middle, width

    def distance(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """d, 0…4."""
        with torch.autocast(features.device.type, enabled=False):  # near neighbours would be one
            cosines = F.normalize(features, dim=-1) @ self.won.T
        return 2 - 2 * cosines.topk(self.nearest, dim=1).values[:, -1]

    def weight(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        return weight(self.distance(features), self.middle, self.width)


def weight(distance: Float[Tensor, " batch"], middle: float, width: float) -> Float[Tensor, " batch"]:
    """w of images at these distances, 0…1: near V the tuned model counts."""
    return torch.sigmoid((middle - distance) / width)


def nearest_of(won: int, images: int, share: float, of: str) -> int:
    """K, at least 1 and at most |V|.

    Args:
        won: |V|.
        images: N, what V was chosen from.
        of: "won": ``share`` of |V|, as the paper says; "images": |V| / (``share`` · N), as its public code counts. Of
            ImageNet's images the two are much alike, of fewer images they are not.

    Example:
        >>> nearest_of(300_000, 1_281_167, 0.001, "won"), nearest_of(300_000, 1_281_167, 0.001, "images")
        (300, 234)
    """
    return min(won, max(1, round(share * won if of == "won" else won / (share * images))))


def vrf(
    zeroshot: Classifier,
    checkpoint: Classifier,
    data: RobustnessData,
    encode: Encode,
    *,
    share: float,
    of: str,
    middle: float,
    width: float,
) -> VarianceReduction:
    """The mixture of ``zeroshot`` and ``checkpoint`` for ``data``'s training images.

    Args:
        share: by which K is found.
        of: how, see ``nearest_of``.
        middle: a.
        width: b.

    Raises:
        UserError: nothing is held out, or V is empty.
    """
    holdout = holdout_of(data, "vrf")
    models = zeroshot.without_text(), checkpoint.without_text()
    images = Selection(data.training_set(), data.split[0])
    seen = [encode(model, images) for model in models]
    wrong, right = (is_right(logits_of(m, f), images.labels) for m, f in zip(models, seen, strict=True))
    won = right & ~wrong
    if not won.any():
        raise UserError(
            f"method=vrf: of {counted(len(images), 'training image')} there is none that the checkpoint gets right"
            " and the zero-shot model wrong, and it goes by those"
        )
    temperatures = []
    for model in models:
        logits = logits_of(model, encode(model, holdout.dataset))
        temperatures.append(confident_temperature(logits, is_right(logits, holdout.dataset.labels)))
    nearest = nearest_of(int(won.sum()), len(images), share, of)
    return VarianceReduction(*models, (temperatures[0], temperatures[1]), seen[1][won], nearest, middle, width)
