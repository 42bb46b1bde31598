"""WiSE-FT: (1 − α) · zero-shot + α · fine-tuned, over all weights, head included.

Wortsman et al.: Robust fine-tuning of zero-shot models, CVPR 2022. The checkpoint may be any model left by a run.
"""

from robustft.experiment import Run
from robustft.methods.weights import add, with_weights
from robustft.training.loop import Trained


def make(run: Run) -> Trained:
    tuned = run.load(run.cfg.checkpoint)
    total = add({}, run.zeroshot, 1 - run.cfg.alpha)
    return Trained(with_weights(tuned, add(total, tuned, run.cfg.alpha)))
