"""The currency of the data package: batches, the model's transform, evaluation sets.

A dataset here is anything with `len()`, `.labels` (Int64 tensor, one label per image) and items
`dataset[i] -> (pixels, label, i)`, where pixels are uint8 RGB at the model's resolution. Normalisation
happens on the device (`Preprocess.normalise`): bytes are a quarter of the traffic of floats.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from robustft.common.errors import UserError
from robustft.data.reading import as_seen
from robustft.data.sampling import draw

LARGEST = 2**26  # pixels of an image as it is resized, before its middle is cut out
MARGIN = 8  # pixels: more than a filter reaches to either side


class Batch(NamedTuple):
    """What a loader yields. Images are uint8 until they are on the device, then CLIP-normalised floats."""

    images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    labels: Int64[Tensor, " batch"]
    indices: Int64[Tensor, " batch"]  # position in the dataset: finds cached maps and per-image predictions


@runtime_checkable
class ImageSet(Protocol):
    """Items are `(uint8 image [3, height, width], label, position)`."""

    labels: Int64[Tensor, " images"]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], int, int]: ...

    def key(self, index: int) -> str:
        """A name for the image that lasts: its path within the set, or its number."""
        ...

    def identity(self, chosen: Int64[Tensor, " chosen"] | None = None) -> str:
        """What the pixels are made from: two datasets with the same one hold the same images.

        Args:
            chosen: positions of the images that matter; None: all.
        """
        ...


def take(dataset: ImageSet, indices: Sequence[int]) -> Batch:
    """Some images of a set as a batch, in one go where the set can do that."""
    together = getattr(dataset, "__getitems__", None)
    if together is not None:
        return together(list(indices))
    images, labels, positions = zip(*(dataset[i] for i in indices), strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(positions))


@dataclass(frozen=True)
class Preprocess:
    """The model's deterministic evaluation transform; the same pixels as open_clip's `image_transform` and timm's.

    Attributes:
        size: side of the square that the model sees, in pixels.
        mean: of each channel, for pixels in 0...1.
        std: likewise.
        resize: shortest (the shorter side is resized, the longer one cropped) or squash (both sides, whatever the
            shape of the image: SigLIP).
        crop: share of the resized image's side that the centre crop keeps, in (0, 1] (timm's `crop_pct`).
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize: str = field(default="shortest", repr=False)  # in `repr`, images kept so far would be other ones
    crop: float = field(default=1.0, repr=False)

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        """An image of any kind as a model takes it, upright and on white: stacked, they are a batch.

        Example:
            >>> logits = model(model.preprocess(Image.open("a.jpg"))[None])  # doctest: +SKIP
        """
        return self.normalise(self.pixels(as_seen(image))[None])[0]

    def pixels(self, image: Image.Image) -> UInt8[Tensor, "3 size size"]:
        """RGB, resized (with PIL's antialiasing), centre crop; values 0...255."""
        side = self.resized
        sides = [side, side] if self.resize == "squash" else [side]
        if self.resize == "shortest" and max(image.size) * side**2 > LARGEST * min(image.size):
            image = _middle(image, side, self.interpolation)
        else:
            image = F.resize(image, sides, interpolation=InterpolationMode(self.interpolation))
        return F.pil_to_tensor(F.center_crop(image, [self.size, self.size]).convert("RGB"))

    @property
    def resized(self) -> int:
        """Side of the image before the centre crop: of the shorter one, or of both."""
        return math.floor(self.size / self.crop)

    def unusual(self) -> dict[str, str | float]:
        """What makes other pixels than size and interpolation alone do: `resize` and `crop`, mostly neither."""
        usual = {"resize": "shortest", "crop": 1.0}
        return {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}

    def describe(self) -> dict[str, Any]:
        """What makes this transform again; what is usual is left out."""
        return {**{name: getattr(self, name) for name in ("size", "mean", "std", "interpolation")}, **self.unusual()}

    def normalise(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Scale to 0...1, subtract the mean and divide by the standard deviation of each channel."""
        mean, std = (_per_channel(values, images.device) for values in (self.mean, self.std))
        return images.float().div_(255).sub_(mean).div_(std)


def _middle(image: Image.Image, side: int, interpolation: str) -> Image.Image:
    """The middle of a very long image, its shorter side resized to ``side``: what a centre crop leaves of the whole is
    in it, to within rounding. The whole, resized, might not fit into memory: a picture of 100,000 by 1 pixels is a file
    of a kilobyte.
    """
    short, long = sorted(image.size)
    whole = int(side * long / short)  # as torchvision has it
    kept = 2 * side + (whole - 2 * side) % 4  # so that the centre crops of both round alike
    first = (whole - kept) // 2
    start, end = first * long / whole, (first + kept) * long / whole
    cut = max(0, int(start) - MARGIN), min(long, int(end) + MARGIN)
    upright = image.height > image.width
    image = image.crop((0, cut[0], short, cut[1]) if upright else (cut[0], 0, cut[1], short))
    near, far = start - cut[0], end - cut[0]
    box, size = ((0, near, short, far), (side, kept)) if upright else ((near, 0, far, short), (kept, side))
    return image.resize(size, Image.Resampling[interpolation.upper()], box)


@lru_cache
def _per_channel(values: tuple[float, float, float], device: torch.device) -> Float[Tensor, "3 1 1"]:
    """Kept per device: copying three numbers to a GPU at every step would make the host wait for it."""
    with torch.inference_mode(False):  # a cached inference tensor could not take part in training
        return torch.tensor(values, device=device).view(3, 1, 1)


def digest_of(tensor: Tensor) -> str:
    """A digest of a tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()


class TensorImages(Dataset):
    """A dataset that is in memory already, as uint8 pixels at the model's resolution."""

    def __init__(self, images: UInt8[Tensor, "images 3 height width"], labels: Int64[Tensor, " images"]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], int, int]:
        return self.images[index], int(self.labels[index]), index

    def original(self, index: int) -> UInt8[Tensor, "3 height width"]:
        return self.images[index]

    def key(self, index: int) -> str:
        return str(index)

    def identity(self, chosen: Int64[Tensor, " chosen"] | None = None) -> str:
        return digest_of(self.images if chosen is None else self.images[chosen])

    def __getitems__(self, indices: list[int]) -> Batch:
        """One gather for the whole batch (the loader prefers this to item by item)."""
        chosen = torch.tensor(indices)
        return Batch(self.images[chosen], self.labels[chosen], chosen)


class Selection(Dataset):
    """Some images of a dataset, renumbered from 0."""

    def __init__(self, dataset: ImageSet, chosen: Int64[Tensor, " images"]) -> None:
        self.dataset, self.chosen = dataset, chosen
        self.labels = dataset.labels[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], int, int]:
        image, label, _ = self.dataset[int(self.chosen[index])]
        return image, label, index

    def __getitems__(self, indices: list[int]) -> Batch:
        batch = take(self.dataset, self.chosen[torch.tensor(indices)].tolist())
        return batch._replace(indices=torch.tensor(indices))

    def original(self, index: int) -> Any:
        return original(self.dataset, int(self.chosen[index]))

    def key(self, index: int) -> str:
        return self.dataset.key(int(self.chosen[index]))

    def identity(self, chosen: Int64[Tensor, " chosen"] | None = None) -> str:
        """That of the chosen images alone: of a million training images the hold-out asks for a few."""
        return self.dataset.identity(self.chosen if chosen is None else self.chosen[chosen])


def original(dataset: ImageSet, index: int) -> Image.Image | UInt8[Tensor, "3 height width"]:
    """The image of a set before the transform: what an augmentation crops from.

    Raises:
        UserError: the set keeps none.
    """
    if not hasattr(dataset, "original"):
        raise UserError(
            f"augment: {type(dataset).__name__} keeps no images from before the transform, which crops are taken from."
            " Give it a method `original(index)`, or leave augment out"
        )
    return dataset.original(index)


@dataclass(frozen=True)
class EvaluationSet:
    """A set to report accuracy on. One mechanism for plain sets (identity), class subsets (one row per kept
    class) and ObjectNet's label sets (several right classes per row).
    """

    name: str
    dataset: ImageSet
    correct: Bool[Tensor, "labels classes"]  # correct[label, k]: predicting class k is right for that label
    keys: Sequence[str]  # one name per image, its path within the set
    full_size: int | None = None  # images before a draw; None: nothing was left out
    groups: Int64[Tensor, " images"] | None = None  # of each image, by number, where the set tells groups apart
    objects: Bool[Tensor, "images height width"] | None = None  # where the object of each image is seen, if known

    @cached_property
    def allowed(self) -> Bool[Tensor, " classes"]:
        """Classes that can be predicted; the logits of the others are removed before the argmax."""
        return self.correct.any(0)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of everything a score depends on besides the model: images, labels, right classes."""
        digest = hashlib.sha256(f"{self.name}\0{self.dataset.identity()}".encode())
        digest.update("\0".join(self.keys).encode())
        digest.update((digest_of(self.dataset.labels) + digest_of(self.correct)).encode())
        if self.groups is not None:
            digest.update(digest_of(self.groups).encode())
        return digest.hexdigest()

    @property
    def partial(self) -> bool:
        """Whether images of this set were left out (`data.eval_images`)."""
        return self.full_size is not None and self.full_size > len(self.dataset)

    def at_most(self, images: int | None) -> "EvaluationSet":
        """This set cut to a fixed random draw of so many images: the same ones whatever the run's seed."""
        if images is None or images >= len(self.dataset):
            return self
        return self.select(draw(len(self.dataset), images, seed=0))

    def select(self, chosen: Int64[Tensor, " images"]) -> "EvaluationSet":
        """This set with the chosen images only."""
        return replace(
            self,
            dataset=Selection(self.dataset, chosen),
            keys=[self.keys[i] for i in chosen.tolist()],
            full_size=self.full_size or len(self.dataset),
            groups=None if self.groups is None else self.groups[chosen],
            objects=None if self.objects is None else self.objects[chosen],
        )


@dataclass(frozen=True)
class RetentionTask:
    """Another task than that of training: what a model could do before, and may have forgotten.

    Tasks of the same pictures (their `identity` says so) are asked together: each picture is encoded once.

    Attributes:
        images: an evaluation set under the task's name; `correct[label, class]` is over its own classes.
        class_names: what its classes are called, in label order.
        templates: of prompts, from which the text tower makes the head.
    """

    images: EvaluationSet
    class_names: Sequence[str]
    templates: Sequence[Callable[[str], str] | str]

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def prompts(self) -> list[str]:
        """Every prompt of every class, class by class."""
        return [t.format(c) if isinstance(t, str) else t(c) for c in self.class_names for t in self.templates]

    def at_most(self, images: int | None) -> "RetentionTask":
        """This task on a fixed random draw of so many images."""
        return replace(self, images=self.images.at_most(images))
