"""Reading images although some of them cannot be read."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from robustft.common.errors import UserError
from robustft.data.folders import ImageFiles
from robustft.data.own.reading import read_upright
from robustft.data.sets import Preprocess

UNREADABLE = 1  # the label of an image that could not be read; that of others is 0


class ReadableImages(ImageFiles):
    """Images in an order; one that cannot be read is black, and its label says so."""

    def __init__(self, paths: Sequence[str], preprocess: Preprocess) -> None:
        labels = torch.zeros(len(paths), dtype=torch.int64)
        super().__init__(Path("."), paths, labels, preprocess, read=read_upright)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], int, int]:
        try:
            return self.preprocess.pixels(self.original(index)), 0, index
        except UserError:
            side = self.preprocess.size
            return torch.zeros(3, side, side, dtype=torch.uint8), UNREADABLE, index
