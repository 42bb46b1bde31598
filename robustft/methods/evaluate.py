"""Any model left by a run, on any data."""

from robustft.experiment import Run
from robustft.training.loop import Trained


def make(run: Run) -> Trained:
    return Trained(run.load(run.cfg.checkpoint))
