"""The matrices that take a tower's last states to the features that images and texts share."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from robustft.models.classifier import Classifier
from robustft.models.open_clip_private import text_tower


def image_projection(model: Classifier) -> Float[Tensor, "width features"]:
    """W_v, the image tower's.

    Raises:
        UserError: it has none.
    """
    pool = getattr(model.visual, "attnpool", None)  # of CLIP's ResNets
    found = _matrix(getattr(model.visual, "proj", None) if pool is None else pool.c_proj)
    if found is None:
        raise model.refusal("projection of its image features, which the method works on")
    return found


def text_projection(model: Classifier) -> Float[Tensor, "width features"]:
    """W_t, the text tower's.

    Raises:
        UserError: it has none.
    """
    found = _matrix(getattr(text_tower(model.text), "text_projection", None))
    if found is None:
        raise model.refusal("projection of its text features, which the method works on")
    return found


def _matrix(projection: Any) -> Tensor | None:
    """[width, features] of a parameter of that shape, or of a linear layer."""
    if isinstance(projection, nn.Linear):
        return projection.weight.T
    return projection if isinstance(projection, Tensor) and projection.ndim == 2 else None
