"""The paper's method: cross-entropy on x, the teacher's features on the masked and refilled x_cf.

With ``mask=none`` it is feature distillation (FD) on the images as they are.
"""

from robustft.experiment import Run
from robustft.training.loop import Trained


def make(run: Run) -> Trained:
    return run.train(run.student(), run.distillation())
