"""Images on disk, a folder per class: scanning, reading, and telling damaged files.

What a set of images means is one mapping: folder name -> the classes that are right for its images.
"""

import hashlib
import os
import warnings
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.features
import torch
import torchvision
from jaxtyping import Int64, UInt8
from PIL import Image
from rich import get_console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from robustft.common.errors import UserError
from robustft.data.sets import EvaluationSet, ImageSet, Preprocess

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")

UNKNOWN = -2  # of a file that has not been looked at

# Some of ImageNet's photographs carry broken camera data; their pixels are fine.
warnings.filterwarnings("ignore", "(Possibly )?[Cc]orrupt EXIF data", UserWarning)


class ImageFolders(Dataset):
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
        self.root, self.folders, self.preprocess, self.border = root, list(folders), preprocess, border
        with ThreadPoolExecutor(16) as pool:  # the scan waits for the file system, not for Python
            names = list(pool.map(_image_names, (root / folder for folder in folders)))
        counts = torch.tensor([len(of_class) for of_class in names])
        if not counts.sum():
            raise UserError(f"{root}: no images in its {len(folders)} class folders ({', '.join(EXTENSIONS)}).")
        self.labels = torch.arange(len(folders)).repeat_interleave(counts)
        # One array rather than a million strings: worker processes share it without copying.
        self.names = np.array([os.fsencode(name) for of_class in names for name in of_class])
        self._stamps: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], int, int]:
        image = read_image(self.path(index))
        if self.border:
            b = self.border
            image = image.crop((b, b, image.width - b, image.height - b))
        return self.preprocess.pixels(image), int(self.labels[index]), index

    def key(self, index: int) -> str:
        return f"{self.folders[int(self.labels[index])]}/{os.fsdecode(self.names[index])}"

    def identity(self, chosen: Int64[Tensor, " images"] | None = None) -> str:
        """A digest of the place, of name, size and time of change of every image file, and of what makes the pixels.

        Args:
            chosen: positions of the images; None: all. Other files are not looked at.
        """
        positions = np.arange(len(self)) if chosen is None else chosen.numpy()
        stamps = self.stamps(positions)
        digest = hashlib.sha256(f"{self.root.resolve()}\0{self.preprocess}\0{self.pixels()}\0{self.folders}\0".encode())
        for values in (self.labels.numpy()[positions], self.names[positions], stamps):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def pixels(self) -> dict[str, str]:
        """What the pixels depend on besides the image files: the transform, and the versions that carry it out."""
        return {
            "size": str(self.preprocess.size),
            "interpolation": self.preprocess.interpolation,
            **{name: str(value) for name, value in self.preprocess.unusual().items()},
            "border": str(self.border),
            "Pillow": PIL.__version__,
            "libjpeg": str(PIL.features.version("libjpeg_turbo") or PIL.features.version("jpg")),
            "torchvision": torchvision.__version__.partition("+")[0],
        }

    def stamps(self, positions: Int64[np.ndarray, " images"]) -> Int64[np.ndarray, "images 2"]:
        """Size and time of the last change (ns) of these image files; -1 where a file cannot be looked at.

        Each file is looked at once by this object: what is known of a set holds for the images it was asked about.
        """
        if self._stamps is None:
            self._stamps = np.full((len(self), 2), UNKNOWN)
        stamps = self._stamps
        missing = positions[stamps[positions, 0] == UNKNOWN]
        root = os.fsencode(self.root)
        folders = [os.fsencode(folder) for folder in self.folders]
        labels = self.labels.numpy()

        def look(part: np.ndarray) -> None:
            found = []
            for label, name in zip(labels[part].tolist(), self.names[part].tolist(), strict=True):
                try:
                    status = os.stat(b"%s/%s/%s" % (root, folders[label], name))
                    found.append((status.st_size, status.st_mtime_ns))
                except OSError:
                    found.append((-1, -1))
            stamps[part] = np.array(found, np.int64).reshape(-1, 2)

        with ThreadPoolExecutor(16) as pool:  # waits for the file system, not for Python
            list(pool.map(look, np.array_split(missing, max(1, len(missing) // 512))))
        return stamps[positions]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_stamps": None}  # loader processes have no use for them

    def path(self, index: int) -> str:
        return f"{self.root}/{self.key(index)}"


def folder_set(name: str, images: ImageSet, right: Sequence[Sequence[int]], classes: int) -> EvaluationSet:
    """An evaluation set of folders; `right[label]` lists the classes that are right for that label."""
    correct = torch.zeros(len(right), classes, dtype=torch.bool)
    for label, of_label in enumerate(right):
        correct[label, list(of_label)] = True
    return EvaluationSet(name, images, correct, keys=[images.key(i) for i in range(len(images))])


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
            differences.append(f"{len(unknown)} belong to no class ({_some(unknown)})")
        if missing:
            differences.append(f"{len(missing)} are missing ({_some(missing)})")
        raise UserError(
            f"{root}: its folders do not match the classes. Expected {len(expected)} folders "
            f"({_some(expected)}); found {len(found)}: {' and '.join(differences)}."
            + ("" if found else " Sort the images into one folder per class.")
        )


def read_image(path: str) -> Image.Image:
    """The image as RGB.

    Raises:
        UserError: with the path, where the file is missing, truncated or no image.
    """
    try:
        with open(path, "rb") as file:
            return Image.open(file).convert("RGB")
    except Exception as error:  # PIL raises a dozen kinds for damaged files, SyntaxError among them
        raise UserError(
            f"Cannot read the image {path}: {_reason(error)}. "
            "Fetch it again or remove it; check=data lists all such files."
        ) from error


def damaged_files(paths: Sequence[str], *, thorough: bool, title: str) -> dict[str, str]:
    """Paths of unreadable and truncated images, with the reason.

    Thorough means decoding every image. Otherwise only the ends of the files are read (20 µs each), and
    only a file that does not end as its format should is decoded: that finds truncated files and files that
    are no images at a hundredth of the cost, and never blames a good one.
    """
    examine = _decoding_error if thorough else _ending_error
    chunks = [paths[i : i + 64] for i in range(0, len(paths), 64)]  # a task for each of a million files is dear
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        reasons = pool.map(lambda chunk: [examine(path) for path in chunk], chunks)
        done: Iterable[tuple[Sequence[str], list[str | None]]] = zip(chunks, reasons, strict=True)
        if get_console().is_terminal and (thorough or len(paths) > 20_000):
            done = track(done, title, len(chunks), transient=True)
        return {path: reason for pair in done for path, reason in zip(*pair, strict=True) if reason}


def _decoding_error(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            Image.open(file).load()
    except Exception as error:
        return _reason(error)
    return None


def _ending_error(path: str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64))
            tail = file.read()
    except OSError as error:
        return _reason(error)
    complete = b"\xff\xd9" in tail or b"IEND\xaeB`\x82" in tail  # the ends of JPEG and PNG
    return None if complete else _decoding_error(path)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or repr(error)


def _image_names(folder: Path) -> list[str]:
    """File names of the images, sorted; by their extension alone, since a million `stat`s take minutes."""
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries)
        return sorted(n for n in names if n.lower().endswith(EXTENSIONS) and not n.startswith("."))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
