"""Sets of image files: a list of them, or a folder per class.

What a set of images means is one mapping: folder name -> the classes that are right for its images.
"""

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.features
import torch
import torchvision
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from robustft.common.errors import UserError
from robustft.common.wording import counted, noun, some
from robustft.data.reading import read_image
from robustft.data.sets import EvaluationSet, ImageSet, Preprocess, Selection
from robustft.data.walk import EXTENSIONS, QUICK_LOOK_S, UNKNOWN, stamp


class ImageFiles(Dataset):
    """The images of these files, in this order.

    Args:
        root: the folder that `names` are relative to.
        names: a path for every image, below `root` or absolute.
        labels: a label for every image.
        preprocess: the model's transform.
        border: pixels cut off each side before the transform (ObjectNet's red frame).
        read: gives the image of a path, as RGB.
        how: what is particular about `read`, for the identity of the pixels.
        stamps: what `stamps` would find; UNKNOWN where it has to look.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Int64[Tensor, " images"],
        preprocess: Preprocess,
        *,
        border: int = 0,
        read: Callable[[str], Image.Image] = read_image,
        how: str = "",
        stamps: Int64[np.ndarray, "images 2"] | None = None,
    ) -> None:
        self.root, self.labels, self.preprocess, self.border = root, labels, preprocess, border
        self.read, self.how = read, how
        self.folders: list[str] = []  # by label, where names are inside of them
        # One array rather than a million strings: worker processes share it without copying.
        self.names = np.array(os.fsencode("\0".join(names)).split(b"\0") if len(names) else [], np.bytes_)
        self._stamps = stamps

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], int, int]:
        return self.preprocess.pixels(self.original(index)), int(self.labels[index]), index

    def original(self, index: int) -> Image.Image:
        """The image before the transform, as RGB.

        Raises:
            UserError: with the path, where the file cannot be read.
        """
        image = self.read(self.path(index))
        if self.border:
            b = self.border
            image = image.crop((b, b, image.width - b, image.height - b))
        return image

    def relative(self, positions: Int64[np.ndarray, " images"]) -> list[bytes]:
        """The paths of images below the root, as the file system has them."""
        return self.names[positions].tolist()

    def key(self, index: int) -> str:
        return os.fsdecode(self.relative(np.array([index]))[0])

    def identity(self, chosen: Int64[Tensor, " images"] | None = None) -> str:
        """A digest of the place, of name, size and time of change of every image file, and of what makes the pixels.

        Args:
            chosen: positions of the images; None: all. Other files are not looked at.
        """
        positions = np.arange(len(self)) if chosen is None else chosen.numpy()
        digest = hashlib.sha256(f"{self.root.resolve()}\0{self.preprocess}\0{self.pixels()}\0{self.folders}\0".encode())
        for values in (self.labels.numpy()[positions], self.names[positions], self.stamps(positions)):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def files(self, positions: Int64[np.ndarray, " images"]) -> str:
        """A digest of the place, and of name, size and time of change of these image files; not of their pixels."""
        digest = hashlib.sha256(f"{self.root.resolve()}\0{self.folders}\0".encode())
        of_folders = [self.labels.numpy()[positions]] if self.folders else []  # names are inside of folders, by label
        for values in (*of_folders, self.names[positions], self.stamps(positions)):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def pixels(self) -> dict[str, str]:
        """What the pixels depend on besides the image files: the transform, and the versions that carry it out."""
        made = {
            "size": str(self.preprocess.size),
            "interpolation": self.preprocess.interpolation,
            **{name: str(value) for name, value in self.preprocess.unusual().items()},
            "border": str(self.border),
            "Pillow": PIL.__version__,
            "libjpeg": str(PIL.features.version("libjpeg_turbo") or PIL.features.version("jpg")),
            "torchvision": torchvision.__version__.partition("+")[0],
        }
        return made | ({"read": self.how} if self.how else {})

    def stamps(self, positions: Int64[np.ndarray, " images"]) -> Int64[np.ndarray, "images 2"]:
        """Size and time of the last change (ns) of these image files; -1 where a file cannot be looked at.

        Each file is looked at once, by this object or when it was listed.
        """
        if self._stamps is None:
            self._stamps = np.full((len(self), 2), UNKNOWN)
        stamps = self._stamps
        missing = positions[stamps[positions, 0] == UNKNOWN]
        pieces = np.array_split(missing, max(1, len(missing) // 512))
        with _opened(self.root) as root:

            def look(part: np.ndarray) -> None:
                names = self.relative(part)
                if root is None:
                    names = [os.path.join(os.fsencode(self.root), name) for name in names]
                stamps[part] = np.array([stamp(name, root) for name in names], np.int64).reshape(-1, 2)

            started = time.perf_counter()
            look(pieces[0])
            if time.perf_counter() - started < QUICK_LOOK_S * len(pieces[0]):
                for piece in pieces[1:]:  # threads would only take turns
                    look(piece)
            else:
                with ThreadPoolExecutor(16) as pool:  # waits for the file system, not for Python
                    list(pool.map(look, pieces[1:]))
        return stamps[positions]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_stamps": None}  # loader processes have no use for them

    def path(self, index: int) -> str:
        return os.path.join(str(self.root), self.key(index))


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A folder for the operating system to look from: the way to it is gone once, not for each of a million files."""
    try:
        handle = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY))  # a folder may be one to pass and not to read
    except OSError:
        handle = None
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


class ImageFolders(ImageFiles):
    """The images of `root/<folder>/`, label k being the k-th folder; pixels in the order of the file names.

    Args:
        root: the folder that holds the class folders.
        folders: the class folders; exactly these must be there.
        preprocess: the model's transform.
        border: pixels cut off each side before the transform (ObjectNet's red frame).
        ignored: folders that may be there too, and are not read.

    Raises:
        UserError: the folders are not those of the classes, or hold no image.
    """

    def __init__(
        self,
        root: Path,
        folders: Sequence[str],
        preprocess: Preprocess,
        *,
        border: int = 0,
        ignored: Collection[str] = (),
    ) -> None:
        match_folders(root, folders, ignored)
        with ThreadPoolExecutor(16) as pool:  # the scan waits for the file system, not for Python
            names = list(pool.map(_image_names, (root / folder for folder in folders)))
        counts = torch.tensor([len(of_class) for of_class in names])
        if not counts.sum():
            raise UserError(
                f"{root}: no images in its {counted(len(folders), 'class folder')} ({', '.join(EXTENSIONS)})."
            )
        labels = torch.arange(len(folders)).repeat_interleave(counts)
        super().__init__(root, [name for of_class in names for name in of_class], labels, preprocess, border=border)
        self.folders = list(folders)
        self._encoded = [os.fsencode(folder) for folder in folders]

    def relative(self, positions: Int64[np.ndarray, " images"]) -> list[bytes]:
        pairs = zip(self.labels.numpy()[positions].tolist(), self.names[positions].tolist(), strict=True)
        return [b"%s/%s" % (self._encoded[label], name) for label, name in pairs]


def whole_of(images: ImageSet) -> tuple[ImageSet, Int64[Tensor, " images"]]:
    """The set that a selection is made from, and which of its images are selected, in the selection's order."""
    part: Any = images
    positions = torch.arange(len(images))
    while isinstance(part, Selection):
        part, positions = part.dataset, part.chosen[positions]
    return part, positions


def files_of(images: ImageSet) -> tuple[ImageFiles, Int64[Tensor, " images"]] | None:
    """The files that a set's images are read from, and which of them, in the set's order; None where they come from
    elsewhere, a prepared copy or memory.
    """
    whole, positions = whole_of(images)
    return (whole, positions) if isinstance(whole, ImageFiles) else None


def keys_of(images: ImageSet) -> list[str]:
    """The key of every image of a set, in its order."""
    if (found := files_of(images)) is None:
        return [images.key(i) for i in range(len(images))]
    names = found[0].relative(found[1].numpy())
    return os.fsdecode(b"\0".join(names)).split("\0") if names else []


def image_paths(images: ImageSet) -> list[str]:
    """The files that a set's images are read from; none where they come from elsewhere."""
    found = files_of(images)
    return [] if found is None else [found[0].path(i) for i in found[1].tolist()]


def folder_set(name: str, images: ImageSet, right: Sequence[Sequence[int]], classes: int) -> EvaluationSet:
    """An evaluation set of folders; `right[label]` lists the classes that are right for that label."""
    correct = torch.zeros(len(right), classes, dtype=torch.bool)
    for label, of_label in enumerate(right):
        correct[label, list(of_label)] = True
    return EvaluationSet(name, images, correct, keys=keys_of(images))


def match_folders(root: Path, expected: Sequence[str], ignored: Collection[str] = ()) -> None:
    """Check that the folders in `root` are the expected ones; hidden folders are passed over.

    Raises:
        UserError: naming folders that belong to no class, and classes without a folder.
    """
    with os.scandir(root) as entries:
        found = {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    unknown = sorted(found.difference(expected, ignored))
    missing = [folder for folder in expected if folder not in found]
    if unknown or missing:
        differences = []
        if unknown:
            differences.append(
                f"{len(unknown):,} {noun(len(unknown), 'belongs', 'belong')} to no class ({some(unknown)})"
            )
        if missing:
            differences.append(f"{len(missing):,} {noun(len(missing), 'is', 'are')} missing ({some(missing)})")
        raise UserError(
            f"{root}: its folders do not match the classes. Expected {counted(len(expected), 'folder')}"
            f" ({some(expected)}); found {len(found)}: {' and '.join(differences)}."
            + ("" if found else " Sort the images into one folder per class.")
        )


def _image_names(folder: Path) -> list[str]:
    """File names of the images, sorted; by their extension alone, since a million `stat`s take minutes."""
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries)
        return sorted(n for n in names if n.lower().endswith(EXTENSIONS) and not n.startswith("."))
