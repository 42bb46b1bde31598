"""Vanilla fine-tuning: every weight, cross-entropy alone."""

from robustft.experiment import Run
from robustft.training.loop import Trained


def make(run: Run) -> Trained:
    return run.train(run.student())
