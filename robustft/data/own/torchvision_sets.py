"""Data sets as torchvision has them on disk, by its names; what is private to its classes is asked for here.

Their pixels are those that torchvision gives, as published numbers on these sets are: not turned, not laid on white.
"""

import hashlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from robustft.common.errors import UserError
from robustft.data.folders import ImageFiles
from robustft.data.sets import ImageSet, Preprocess, digest_of

SETS = (
    *("CIFAR10", "CIFAR100", "STL10", "MNIST", "SVHN", "DTD", "EuroSAT", "GTSRB", "Food101", "Flowers102"),
    *("OxfordIIITPet", "SUN397", "StanfordCars", "FGVCAircraft"),
)
FILES = ("_image_files", "_images", "samples", "_samples")  # paths of the images; with labels in the last two
LABELS = ("targets", "labels", "_labels")
PIXELS = "data"  # of those that are in memory


class TorchvisionImages(Dataset):
    """Images that a torchvision set holds in memory."""

    def __init__(self, images: Any, labels: Int64[Tensor, " images"], preprocess: Preprocess) -> None:
        self.images, self.labels, self.preprocess = images, labels, preprocess

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], int, int]:
        image = self.images[index][0].convert("RGB")
        return self.preprocess.pixels(image), int(self.labels[index]), index

    def key(self, index: int) -> str:
        return str(index)

    def identity(self, chosen: Int64[Tensor, " chosen"] | None = None) -> str:
        pixels = torch.as_tensor(getattr(self.images, PIXELS))
        digest = digest_of(pixels if chosen is None else pixels[chosen])
        made = f"{type(self.images).__name__}{self.preprocess}{torchvision.__version__}{digest}"
        return hashlib.sha256(made.encode()).hexdigest()


def torchvision_set(name: str, root: Path, split: str | None, preprocess: Preprocess) -> tuple[ImageSet, Sequence[str]]:
    """The images and the classes of torchvision's set of that name; nothing is downloaded.

    Args:
        name: as torchvision calls it, in letters of any size: CIFAR100, DTD, oxfordiiitpet.
        root: what torchvision is given as ``root``.
        split: train, test or what else the set has; None: test, or all where there are no splits.

    Raises:
        UserError: there is no such set or split, or it is not there.
    """
    setting, plain = f"retain.{name}", name.lower().replace("_", "").replace("-", "")
    called = next((one for one in SETS if one.lower() == plain), None)
    if called is None:
        raise UserError(
            f"{setting}.kind=torchvision: the set goes by the task's name, and no set is called {name}. There are"
            f" {', '.join(SETS)}"
        )
    make: Any = getattr(torchvision.datasets, called)
    taken = inspect.signature(make).parameters
    options: dict[str, Any] = {}
    if "train" in taken:
        if split not in (None, "train", "test"):
            raise UserError(f"{setting}.split={split}: {called} has train and test")
        options = {"train": split == "train"}
    elif "split" in taken:
        options = {"split": split or "test"}
    elif split is not None:
        raise UserError(f"{setting}.split={split}: {called} has no splits. Leave it out")
    try:
        found = make(str(root), download=False, **options)
    except ValueError as error:  # a split that there is not
        raise UserError(f"{setting}.split={split}: {' '.join(str(error).split())}") from error
    except (RuntimeError, OSError) as error:
        fetch = f"from torchvision.datasets import {called}; {called}('{root}', download=True)"
        raise UserError(f'{setting}={root}: no {called} there. Fetch it with python -c "{fetch}"') from error
    images = _images(found, root, preprocess)
    return images, _classes(found, images.labels)


def _images(found: Any, root: Path, preprocess: Preprocess) -> ImageSet:
    paths: Any = next((getattr(found, name) for name in FILES if hasattr(found, name)), None)
    pairs = paths is not None and isinstance(paths[0], tuple)
    labels = [label for _, label in paths] if pairs else next(getattr(found, n) for n in LABELS if hasattr(found, n))
    whole = torch.as_tensor(labels).long()
    if paths is None:
        return TorchvisionImages(found, whole, preprocess)
    names = [os.path.relpath(one[0] if pairs else one, root) for one in paths]
    return ImageFiles(root, names, whole, preprocess)


def _classes(found: Any, labels: Int64[Tensor, " images"]) -> Sequence[str]:
    """What the classes are called; their numbers where the set does not say."""
    own = getattr(found, "classes", None)
    return [str(k) for k in range(int(labels.max()) + 1)] if own is None else list(map(str, own))
