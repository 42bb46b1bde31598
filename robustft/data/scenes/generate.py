"""Sets of rendered scenes in memory."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from robustft.data.scenes.recipes import Recipe, draw
from robustft.data.scenes.render import render

BLOCK = 128  # images rendered together: fixed, so that no pixel depends on how many were asked for


class Rendered(NamedTuple):
    """Images with their labels, object masks and the factors that a caption can name."""

    images: UInt8[Tensor, "n 3 size size"]
    masks: Bool[Tensor, "n size size"]
    labels: Int64[Tensor, " n"]
    contexts: Int64[Tensor, " n"]
    styles: Int64[Tensor, " n"]
    colours: Int64[Tensor, " n"]


def generate(
    recipe: Recipe,
    count: int,
    *,
    size: int,
    seed: int,
    name: str,
    progress: Callable[[int], None] | None = None,
) -> Rendered:
    """The first `count` images of a set. The same arguments give the same bytes; `progress` is told how
    many images are done."""
    blocks = []
    for start in range(0, count, BLOCK):
        scenes = draw(recipe, range(start, start + BLOCK), size, seed, name)
        images, masks = render(scenes, size)
        kept = slice(0, min(BLOCK, count - start))
        rows = (images, masks, scenes.label, scenes.context, scenes.style, scenes.colour)
        blocks.append(Rendered(*(row[kept] for row in rows)))
        if progress is not None:
            progress(min(start + BLOCK, count))
    return Rendered(*map(torch.cat, zip(*blocks, strict=True)))
