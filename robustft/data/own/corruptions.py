"""Stand-in shifts where no shifted images are at hand: the ID set under standard corruptions (`data.corruptions=true`).

Kinds and strengths are those of ImageNet-C (Hendrycks and Dietterich, Benchmarking neural network robustness to common
corruptions and perturbations, ICLR 2019), as far as torchvision has them. They are no natural shifts: who keeps the
accuracy under noise may still lose it on sketches.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from robustft.common.errors import UserError
from robustft.common.randomness import seeded
from robustft.data.sets import ImageSet

Pixels = UInt8[Tensor, "3 height width"]
SIDE = 224  # pixels a side of the images that ImageNet-C's widths and radii are for
SEVERITIES = 5


def gaussian_noise(image: Pixels, severity: int) -> Pixels:
    """Noise of a standard deviation of 0.08 to 0.38, of pixels in 0…1."""
    sigma = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return F.gaussian_noise(image.float() / 255, sigma=sigma, clip=True).mul(255).round().byte()


def gaussian_blur(image: Pixels, severity: int) -> Pixels:
    """A blur of 1 to 6 pixels' standard deviation at 224 a side, and as much of smaller images."""
    sigma = (1.0, 2.0, 3.0, 4.0, 6.0)[severity - 1] * image.shape[-1] / SIDE
    return F.gaussian_blur(image, [2 * max(1, round(3 * sigma)) + 1] * 2, [sigma] * 2)


def pixelate(image: Pixels, severity: int) -> Pixels:
    """The image at 0.6 to 0.25 of its side, blown up again."""
    side = image.shape[-1]
    small = max(1, round(side * (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]))
    return F.resize(F.resize(image, [small, small], antialias=True), [side, side], InterpolationMode.NEAREST)


def jpeg(image: Pixels, severity: int) -> Pixels:
    """JPEG of quality 25 down to 7."""
    return F.jpeg(image, (25, 18, 15, 10, 7)[severity - 1])


def contrast(image: Pixels, severity: int) -> Pixels:
    """A contrast of 0.4 down to 0.05 of what it was."""
    kept, values = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1], image.float()
    means = values.mean((1, 2), keepdim=True)
    return ((values - means) * kept + means).round().clamp(0, 255).byte()


def brightness(image: Pixels, severity: int) -> Pixels:
    """A value (of hue, saturation and value) higher by 0.1 to 0.5."""
    values = image.float() / 255
    top = values.amax(0, keepdim=True)
    brighter = (top + 0.1 * severity).clamp(max=1)
    # Black has no colour to keep: it becomes grey, as it does in HSV.
    scaled = torch.where(top > 0, values * (brighter / top.clamp(min=1e-6)), brighter.expand_as(values))
    return (scaled * 255).round().byte()


KINDS: dict[str, Callable[[Pixels, int], Pixels]] = {
    one.__name__: one for one in (gaussian_noise, gaussian_blur, pixelate, jpeg, contrast, brightness)
}


def chosen(wanted: bool | Sequence[str]) -> list[str]:
    """The kinds that `data.corruptions` asks for: all, none, or those it lists.

    Raises:
        UserError: there is no such kind.
    """
    kinds = list(KINDS) if wanted is True else list(dict.fromkeys(wanted or []))
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"data.corruptions: there is no {kind!r}. There are {', '.join(KINDS)}")
    return kinds


class Corrupted(Dataset):
    """Images of a set, each corrupted in the same way whenever it is read.

    Args:
        images: the set; pixels at the model's resolution.
        kind: one of `KINDS`.
        severity: 1 (weak) to 5.
    """

    def __init__(self, images: ImageSet, kind: str, severity: int) -> None:
        self.images, self.kind, self.severity = images, kind, severity
        self.labels = images.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Pixels, int, int]:
        pixels, label, _ = self.images[index]
        # Torchvision draws its noise from the global generator; by the image alone, not by batches or loader processes.
        with seeded(f"{self.kind}, severity {self.severity}: {self.images.key(index)}"):
            return KINDS[self.kind](pixels, self.severity), label, index

    def key(self, index: int) -> str:
        return self.images.key(index)

    def identity(self, chosen: Int64[Tensor, " images"] | None = None) -> str:
        made = f"{self.images.identity(chosen)}\0{self.kind}\0{self.severity}"
        return hashlib.sha256(made.encode()).hexdigest()
