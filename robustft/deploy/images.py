"""The images that are meant by what was typed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustft.common.errors import UserError, reason
from robustft.common.paths import expand
from robustft.data.walk import images_below


def listed(typed: Sequence[str | Path]) -> list[str]:
    """The paths of images: files as they are given, and the images below folders, by path.

    Raises:
        UserError: one of them is not there, or a folder holds no image.
    """
    found: list[str] = []
    for one in typed:
        path = expand(one)
        if path.is_dir():
            try:
                inside = sorted(images_below(path))
            except OSError as error:
                raise UserError(f"{error.filename or path}: cannot be looked into ({reason(error)})") from error
            if not inside:
                raise UserError(f"{path}: no images in that folder")
            found += [str(path / name) for name in inside]
        elif path.exists():
            found.append(str(path))
        else:
            raise UserError(f"{path}: no such file or folder. Expected images, or folders of them")
    return found


def as_picture(dataset: Any, index: int) -> Any:
    """An image of a set as Pillow's, as it was before the model's transform where the set keeps that."""
    from torch import Tensor
    from torchvision.transforms.v2.functional import to_pil_image

    from robustft.data.sets import original

    found = original(dataset, index) if hasattr(dataset, "original") else dataset[index][0]
    return to_pil_image(found) if isinstance(found, Tensor) else found
