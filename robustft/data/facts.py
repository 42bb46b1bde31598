"""What `check=data` finds out about each image: can it be read, what is it, and which other images is it like."""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from robustft.common.errors import UserError, reason
from robustft.common.terminal import tracked
from robustft.data.reading import opened

TINY, HUGE = 32, 10_000  # pixels: of the shorter and of the longer side
FLAT = 4.0  # standard deviation of grey values (0...255): with less in it, hashes of images are alike by chance
# Extensions that do not say the format of a file.
SAME = {"JPG": "JPEG", "JPE": "JPEG", "JFIF": "JPEG", "JPEG": "JPEG", "TIF": "TIFF", "APNG": "PNG", "JP2": "JPEG2000"}
SAME |= {"HEIC": "HEIF", "HIF": "HEIF", "PGM": "PPM", "MPO": "JPEG"}


@dataclass(frozen=True)
class Facts:
    """Of one image.

    Attributes:
        wrong: why it cannot be read; None where it can.
        format: as Pillow calls it.
        size: width and height in pixels, as stored.
        digest: of the file's bytes.
        hash: perceptual, 64 bits; None where the image is flat or nothing computes it.
    """

    wrong: str | None = None
    format: str = ""
    size: tuple[int, int] = (0, 0)
    digest: bytes = b""
    hash: int | None = None


@cache
def can_hash() -> bool:
    """Whether near duplicates can be found: ImageHash is an extra."""
    try:
        import imagehash  # noqa: F401
    except ImportError:
        return False
    return True


def facts_of(paths: Sequence[str], decode: Callable[[str], str | None], title: str) -> list[Facts]:
    """The facts of image files, in their order; every image is decoded.

    Args:
        decode: says what is wrong with a file.
        title: of the progress bar.
    """

    def look(path: str) -> Facts:
        wrong = decode(path)
        if wrong is not None:
            return Facts(wrong)
        with open(path, "rb") as file:
            return _facts(file)

    return _of_each(paths, look, title)


def facts_of_contents(
    keys: Sequence[str], content: Callable[[str], bytes], decode: Callable[[bytes], Any], title: str
) -> list[Facts]:
    """The facts of images that are no files of their own, in their order; every image is decoded.

    Args:
        content: what a file of the image of that key would hold.
        decode: refuses, with a UserError, what is no image.
    """

    def look(key: str) -> Facts:
        try:
            held = content(key)
            decode(held)
        except (UserError, OSError) as error:
            return Facts(reason(error) if isinstance(error, OSError) else str(error))
        return _facts(io.BytesIO(held))

    return _of_each(keys, look, title)


def _of_each(keys: Sequence[str], look: Callable[[str], Facts], title: str) -> list[Facts]:
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        return list(tracked(pool.map(look, keys), title, len(keys)))


def _facts(file: io.BufferedReader | io.BytesIO) -> Facts:
    digest = hashlib.file_digest(file, "sha256").digest()
    image = opened(file)
    kind, size = image.format or "", image.size
    return Facts(None, kind, size, digest, perceptual_hash(image) if can_hash() else None)


def perceptual_hash(image: Image.Image) -> int | None:
    """The 64 bits of ImageHash's `phash`: signs of the lowest frequencies of the grey image at 32 pixels a side.

    Returns:
        None for an image without content.
    """
    import imagehash

    image.draft("L", (64, 64)) if image.format == "JPEG" else None  # decodes a JPEG at an eighth of its size
    grey = image.convert("L")
    if np.asarray(grey.resize((32, 32)), np.float32).std() < FLAT:
        return None
    bits = np.packbits(imagehash.phash(grey).hash.ravel())
    return int.from_bytes(bits.tobytes(), "big")


def oddities(paths: Sequence[str], facts: Sequence[Facts], named: bool = True) -> dict[str, str]:
    """Images that can be read and may not be what was meant, by their path.

    Args:
        named: whether the ends of paths say what format they have.
    """
    found = {}
    for path, one in zip(paths, facts, strict=True):
        if one.wrong is not None:
            continue
        extension = Path(path).suffix[1:].upper()
        width, height = one.size
        if min(one.size) < TINY:
            found[path] = f"tiny: {width} × {height} pixels"
        elif max(one.size) > HUGE:
            found[path] = f"huge: {width} × {height} pixels"
        elif named and SAME.get(extension, extension) != SAME.get(one.format, one.format):
            found[path] = f"a {one.format} file called {Path(path).name}"
    return found
