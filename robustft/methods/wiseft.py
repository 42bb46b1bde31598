"""WiSE-FT: (1 − α) · zero-shot + α · fine-tuned, over all weights, head included.

Wortsman et al.: Robust fine-tuning of zero-shot models, CVPR 2022. The checkpoint may be any model left by a run.
"""

from robustft.methods.weights import add, with_weights
from robustft.models.classifier import Classifier


def interpolated(zeroshot: Classifier, checkpoint: Classifier, alpha: float) -> Classifier:
    """Go ``alpha`` (0…1) of the way from ``zeroshot`` to ``checkpoint``."""
    return with_weights(checkpoint, add(add({}, zeroshot, 1 - alpha), checkpoint, alpha))
