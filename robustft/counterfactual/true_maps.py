"""The true object in the place of a map (``mask.source=truth``), where the data knows it."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from robustft.common.errors import UserError
from robustft.data.datamodule import RobustnessData


def true_maps(data: RobustnessData, grid: tuple[int, int]) -> Float[Tensor, "images patches"]:
    """Give the share of each patch that the object covers, of the training set in its order, hold-out included.

    Like every map they are divided by their maximum: 0…1, with a 1 in each image in which the object is seen.

    Args:
        grid: rows and columns of patches.

    Raises:
        UserError: the data does not know where the objects are.

    Example:
        >>> true_maps(scenes, (8, 8)).shape
        torch.Size([4000, 64])
    """
    if (objects := data.objects()) is None:
        raise UserError(f"mask.source=truth: data={data.name} does not know where the objects are")
    return maps_of(objects, grid)


def patch_coverage(
    masks: Bool[Tensor, "images height width"], grid: tuple[int, int]
) -> Float[Tensor, "images patches"]:
    """Measure the share of object pixels in each patch of ``grid`` (rows, columns)."""
    return F.adaptive_avg_pool2d(masks.float().unsqueeze(1), grid).flatten(1)


def maps_of(objects: Bool[Tensor, "images height width"], grid: tuple[int, int]) -> Float[Tensor, "images patches"]:
    """Give the share of each patch that the object covers, divided by the image's largest: 0…1."""
    coverage = patch_coverage(objects, grid)
    return coverage / coverage.amax(1, keepdim=True).clamp(min=1e-12)
