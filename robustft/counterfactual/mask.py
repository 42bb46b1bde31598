"""Which patches of an image are replaced (True = replaced)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor


def object_mask(cam: Float[Tensor, "batch patches"], threshold: float) -> Bool[Tensor, "batch patches"]:
    """Take the patches that speak for the label: CAM > threshold, with threshold in (0, 1)."""
    return cam > threshold


def context_mask(cam: Float[Tensor, "batch patches"], threshold: float) -> Bool[Tensor, "batch patches"]:
    """All the others: not (CAM > threshold)."""
    return ~object_mask(cam, threshold)


def random_mask(
    batch: int, patches: int, rate: float, generator: Generator, exact: bool = False
) -> Bool[Tensor, "batch patches"]:
    """Each patch with probability ``rate``, on the generator's device.

    Args:
        exact: mask the same number in every image, leaving int(patches · (1 - rate)), as dropping tokens needs.
    """
    draw = torch.rand(batch, patches, generator=generator, device=generator.device)
    if not exact:
        return draw < rate
    return draw.argsort(1).argsort(1) >= kept_patches(patches, rate)


def kept_patches(patches: int, rate: float) -> int:
    """How many patches an exact random mask leaves."""
    return int(patches * (1 - rate))


Mask = Callable[[int, Tensor | None, Generator], Bool[Tensor, "batch patches"]]


def make_mask(
    kind: str, patches: int, *, threshold: float | None = None, rate: float | None = None, exact: bool = False
) -> Mask:
    """Choose the configured mask, a function of (images in the batch, CAM, generator)."""
    if kind == "random":
        assert rate is not None
        return lambda batch, cam, generator: random_mask(batch, patches, rate, generator, exact)
    assert threshold is not None
    by_map: Callable[..., Bool[Tensor, "batch patches"]] = {"object": object_mask, "context": context_mask}[kind]
    return lambda batch, cam, generator: by_map(cam, threshold)
