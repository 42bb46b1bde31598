"""The pre-trained model as it is."""

from robustft.experiment import Run
from robustft.training.loop import Trained


def make(run: Run) -> Trained:
    return Trained(run.zeroshot)
