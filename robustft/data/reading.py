"""Image files: reading one, and telling those that cannot be read."""

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from rich import get_console
from rich.progress import track

from robustft.common.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")

# Some of ImageNet's photographs carry broken camera data; their pixels are fine.
warnings.filterwarnings("ignore", "(Possibly )?[Cc]orrupt EXIF data", UserWarning)


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
            f"Cannot read the image {path}: {reason(error)}. "
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
        return reason(error)
    return None


def _ending_error(path: str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64))
            tail = file.read()
    except OSError as error:
        return reason(error)
    complete = b"\xff\xd9" in tail or b"IEND\xaeB`\x82" in tail  # the ends of JPEG and PNG
    return None if complete else _decoding_error(path)


def reason(error: Exception) -> str:
    """What an error of Pillow or of the file system says, in short."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or repr(error)
