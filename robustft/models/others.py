"""Classifiers that others have fine-tuned: an image tower with its head, as wise-ft and model soups leave them.

A whole CLIP, as open_clip and FLYP leave it, brings no head: its text tower makes one (``zeroshot.py``).
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch

from robustft.common.errors import UserError
from robustft.common.wording import counted, some
from robustft.models.classifier import Classifier
from robustft.models.origin import beside
from robustft.models.reading import read_state
from robustft.models.weights import check_activation, fit

HEAD = "classification_head."


def classifier_of_others(path: Path, like: Classifier, classes: Sequence[str]) -> Classifier | None:
    """The model in a state dict with a classification head; None where it has no head.

    The head is applied to features of length 1, as theirs is.

    Args:
        like: of the architecture that it has to have.
        classes: that it has to be made for, in the order of its head's rows.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    state = read_state(path)
    if (weight := state.get(f"{HEAD}weight")) is None:
        return None
    if len(weight) != len(classes):
        raise UserError(
            f"{path} has a head for {counted(len(weight), 'class', 'classes')}, expected {len(classes)}"
            f" ({some(list(classes))}). Choose the data= it was made with."
        )
    if "backbone" not in like.architecture.config:
        check_activation(like.architecture.name, path, beside(path))
    model = deepcopy(like)
    tower = {name: value for name, value in state.items() if name.startswith("visual.")}
    head = {"head.weight": weight, "head.bias": state.get(f"{HEAD}bias", torch.zeros(len(weight)))}
    fit(model, tower | head, path, like.architecture.name)
    return model.eval()
