"""Random changes of training images: crops, flips, RandAugment. `augment=none` is the model's own transform.

A draw depends on the seed, the epoch and the image alone: not on loader processes, batches or devices.
"""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.data.sets import ImageSet, original


class Augment:
    """Cut out a random part of an image, resize it, perhaps mirror it and change its colours and shape.

    The crop is torchvision's `RandomResizedCrop` (Szegedy et al., Going deeper with convolutions, CVPR 2015): a part of
    `scale` of the area at an aspect ratio from 3/4 to 4/3, both drawn; bicubic, antialiased. wise-ft and FLYP take
    scale=(0.9, 1) and no flip, Lipsum-FT scale=(0.08, 1) and flip=0.5.

    Args:
        scale: smallest and largest share of the image's area, in (0, 1].
        flip: probability of mirroring left and right, in [0, 1].
        operations: of RandAugment (Cubuk et al., NeurIPS 2020), after crop and flip; 0: none.
        magnitude: of these operations, a whole number from 0 to 30.

    Raises:
        UserError: a number out of range.
    """

    def __init__(self, scale: Sequence[float], flip: float = 0.0, operations: int = 0, magnitude: int = 9) -> None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(
                f"augment.scale={list(scale)}: expected the smallest and the largest share of an image's area that a"
                " crop may have, as in [0.9,1.0]"
            )
        self.crop = v2.RandomResizedCrop(1, scale=tuple(scale), interpolation=InterpolationMode.BICUBIC)
        self.flip = flip
        self.change = v2.RandAugment(operations, magnitude) if operations else None

    def __call__(
        self, image: Image.Image | UInt8[Tensor, "3 height width"], size: int, random: torch.Generator
    ) -> UInt8[Tensor, "3 size size"]:
        """Draw a change and carry it out.

        Args:
            image: as it was before any transform, RGB.
            size: pixels a side of the result.
            random: on the CPU; where the draw comes from.
        """
        before = torch.random.get_rng_state()  # torchvision draws from the global generator alone
        torch.random.set_rng_state(random.get_state())
        try:
            part = self.crop.make_params([image])
            mirrored = float(torch.rand(())) < self.flip
            image = F.resized_crop(
                image, *(part[key] for key in ("top", "left", "height", "width")), [size, size],
                interpolation=InterpolationMode.BICUBIC,
            )  # fmt: skip
            image = F.horizontal_flip(image) if mirrored else image
            image = self.change(image) if self.change else image
        finally:
            torch.random.set_rng_state(before)
        return image if isinstance(image, Tensor) else F.pil_to_tensor(image.convert("RGB"))


class AugmentedImages(Dataset):
    """The images of a training set, changed; items are asked for by epoch · images + position.

    Raises:
        UserError: the set keeps no images from before the transform.
    """

    def __init__(self, images: ImageSet, augment: Augment, size: int, seed: int) -> None:
        self.images, self.augment, self.size, self.seed = images, augment, size, seed
        self.labels = images.labels
        original(images, 0)  # refused before training, if at all

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[UInt8[Tensor, "3 height width"], int, int]:
        epoch, index = divmod(number, len(self))
        image = self.augment(
            original(self.images, index), self.size, generator("augmentation", self.seed, epoch, index)
        )
        return image, int(self.labels[index]), index

    def key(self, index: int) -> str:
        return self.images.key(index)

    def identity(self, chosen: Tensor | None = None) -> str:
        raise NotImplementedError("an augmented image is another one every time")
