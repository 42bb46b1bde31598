"""Rendered scenes at a model's resolution."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from torch import Tensor

from robustft.data.scenes.generate import Rendered
from robustft.data.sets import Batch, TensorImages


class SceneImages(TensorImages):
    """A rendered set, resized to the model's resolution when that is another.

    Attributes:
        masks: where the object is seen, at the resolution of rendering.
    """

    def __init__(self, scenes: Rendered, size: int) -> None:
        super().__init__(scenes.images, scenes.labels)
        self.scenes, self.size = scenes, size

    @property
    def masks(self) -> Bool[Tensor, "images height width"]:
        return self.scenes.masks

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 size size"], int, int]:
        return self.__getitems__([index]).images[0], int(self.labels[index]), index

    def __getitems__(self, indices: list[int]) -> Batch:
        batch = super().__getitems__(indices)
        if batch.images.shape[-1] == self.size:
            return batch
        resized = F.interpolate(batch.images.float(), (self.size,) * 2, mode="bicubic", antialias=True)
        return batch._replace(images=resized.round().clamp(0, 255).to(torch.uint8))
