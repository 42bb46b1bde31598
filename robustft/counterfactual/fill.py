"""What a masked patch is replaced with: the counterfactual sample x_cf."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor


class Counterfactual(NamedTuple):
    """A batch of x_cf, in the order of ``Classifier.encode``'s arguments."""

    images: Float[Tensor, "batch 3 height width"]
    masked: Bool[Tensor, "batch patches"] | None = None
    kept: Int64[Tensor, "batch kept"] | None = None


def no_fill(images: Tensor, mask: Bool[Tensor, "batch patches"], kept: int | None = None) -> Counterfactual:
    """Masked patches do not exist for the encoder.

    Args:
        kept: how many patches every image keeps, where that number is known to be the same (exact random masks):
            the others are dropped from the sequence. None: masked patches are hidden as attention keys.
    """
    if kept is None:
        return Counterfactual(images, masked=mask)
    visible = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, :kept]
    return Counterfactual(images, kept=visible)


def single_fill(images: Tensor, mask: Tensor, patch_size: int, generator: Generator) -> Counterfactual:
    """Image i takes its masked patches, at the same positions, from image π(i); π is a random permutation."""
    source = single_source(len(images), generator)
    return Counterfactual(replace_patches(images, mask, source[:, None].expand_as(mask), patch_size))


def multi_fill(images: Tensor, mask: Tensor, patch_size: int, generator: Generator) -> Counterfactual:
    """Every masked patch comes, at the same position, from another image of its own, never from image i itself."""
    batch, patches = mask.shape
    source = multi_source(batch, patches, generator)
    return Counterfactual(replace_patches(images, mask, source, patch_size))


def single_source(batch: int, generator: Generator) -> Int64[Tensor, " batch"]:
    """π: a uniformly random permutation of the batch; fixed points are allowed."""
    return torch.randperm(batch, generator=generator, device=generator.device)


def multi_source(batch: int, patches: int, generator: Generator) -> Int64[Tensor, "batch patches"]:
    """(i + s) mod N with s uniform in 1..N-1 for every image i and patch."""
    own = torch.arange(batch, device=generator.device)[:, None]
    shift = torch.randint(1, batch, (batch, patches), generator=generator, device=generator.device)
    return (own + shift) % batch


def replace_patches(
    images: Float[Tensor, "batch 3 height width"],
    mask: Bool[Tensor, "batch patches"],
    source: Int64[Tensor, "batch patches"],
    patch_size: int,
) -> Float[Tensor, "batch 3 height width"]:
    """x_cf: where ``mask``, patch p of image i becomes patch p of image ``source[i, p]``.

    What the grid of patches leaves over at the right and below (384 px in patches of 14) stays as it is.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    covered = rows * patch_size, columns * patch_size
    if covered != (height, width):
        filled = images.clone()
        inner = filled[:, :, : covered[0], : covered[1]]
        inner.copy_(replace_patches(inner, mask, source, patch_size))
        return filled
    own = torch.arange(batch, device=images.device)[:, None]
    origin = torch.where(mask, source, own)
    patches = images.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size))
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [batch, patches, channels, side, side]
    taken = patches[origin, torch.arange(rows * columns, device=images.device)]
    taken = taken.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return taken.reshape(batch, channels, height, width)


Fill = Callable[[Tensor, Tensor, Generator], Counterfactual]


def make_fill(kind: str, patch_size: int, kept: int | None = None) -> Fill:
    """Choose the configured fill, a function of (images, mask, generator); ``kept`` is that of ``no_fill``."""
    if kind == "none":
        return lambda images, mask, generator: no_fill(images, mask, kept)
    by_source = {"single": single_fill, "multi": multi_fill}[kind]
    return lambda images, mask, generator: by_source(images, mask, patch_size, generator)
