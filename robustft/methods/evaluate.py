"""Any model left by a run, on any data."""

from robustft.models.classifier import Classifier


def saved(checkpoint: Classifier) -> Classifier:
    """Take the model of ``checkpoint``."""
    return checkpoint
