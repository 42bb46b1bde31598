"""Robust fine-tuning of CLIP with masked images as counterfactual samples."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from robustft.deploy.model import Model

__version__ = "0.1.0"


def load(path: "str | Path", backbone: "Callable[..., nn.Module] | None" = None) -> "Model":
    """Load a model left by a run (its folder, or the ``model.safetensors`` in it), ready to name what images show.

    ``model.predict(["a.jpg"])`` gives (class, probability) of each image, ``model.preprocess(image)`` what
    ``model(batch)`` takes, ``model.class_names`` the columns of its logits. Of a run that was interrupted it is the
    best model so far; a warning says so.

    Args:
        backbone: the class of a backbone of your own, where the model has one.

    Raises:
        robustft.common.errors.UserError: the file is missing or is no model of this project.
    """
    from robustft.deploy.model import load  # torch and open_clip only when asked for

    return load(path, backbone)
