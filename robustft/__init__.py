"""Robust fine-tuning of CLIP with masked images as counterfactual samples."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from robustft.models.classifier import Classifier

__version__ = "0.1.0"


def load(path: "str | Path", backbone: "Callable[..., nn.Module] | None" = None) -> "Classifier":
    """Load a model left by a run (its folder, or the ``model.safetensors`` in it), ready to classify.

    Of a run that was interrupted it is the best one so far; a warning says so.

    Args:
        backbone: the class of a backbone of your own, where the model has one.

    Raises:
        robustft.common.errors.UserError: the file is missing or is no model of this project.
    """
    from robustft.models.weights import load_classifier  # torch and open_clip only when asked for

    return load_classifier(Path(path), backbone=backbone)
