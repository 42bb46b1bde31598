"""Reading images as people have them: the pixels a person sees, whatever the file makes of them.

| a file | gets |
|---|---|
| turned by its EXIF data | turned |
| with transparency, also in a palette | laid on white |
| 16 bits or floating point a channel | scaled to 8 bits; white is 1, 255 or 65535, by its values |
| CMYK, grey, palette | RGB |
| animated, several pages | its first picture |
| HEIC | read where pillow-heif is installed, else refused with how to install it |
| larger than Pillow's limit for decompression bombs | refused |
"""

import io
from pathlib import Path

from PIL import Image

from robustft.common.errors import UserError, install
from robustft.data.reading import as_seen, opened, reason
from robustft.data.walk import HEIF

NEEDS_HEIF = f"HEIC needs pillow-heif: {install('heif')}"
HOW = "upright on white, 2"  # of the pixels' identity: another number, other pixels

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def read_upright(path: str) -> Image.Image:
    """The image as RGB, as a person sees it; see the table above.

    Raises:
        UserError: with the path, where the file cannot be read as an image.
    """
    try:
        with open(path, "rb") as file:
            return as_seen(_open(file))
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        raise UserError(
            f"Cannot read the image {path}: {_why(path, error)}. Fetch it again or remove it; check=data lists all"
            " such files."
        ) from error


class UnreadableImage(UserError):
    """What was sent is no image; the message says why, and names no path."""


def read_sent(content: bytes) -> Image.Image:
    """The image in a file that somebody sent, read as ``read_upright`` does.

    Raises:
        UnreadableImage: with the reason.
    """
    try:
        return as_seen(_open(io.BytesIO(content)))
    except Exception as error:  # as above
        raise UnreadableImage(_reason(error, content[:256])) from error


def _open(file: io.BufferedReader | io.BytesIO) -> Image.Image:
    _with_heif()
    image = opened(file)
    image.load()
    return image


_registered: list[bool] = []


def _with_heif() -> bool:
    """Whether HEIC can be read here; Pillow is told of it once."""
    if not _registered:
        try:
            from pillow_heif import register_heif_opener

            register_heif_opener()
            _registered.append(True)
        except ImportError:
            _registered.append(False)
    return _registered[0]


def why_unreadable(path: str) -> str | None:
    """What keeps a file from being read as an image; None where it is one. Every pixel is decoded."""
    try:
        read_upright(path)
    except UserError as error:
        return _why(path, error.__cause__ if isinstance(error.__cause__, Exception) else error)
    return None


def _why(path: str, error: Exception) -> str:
    if Path(path).suffix.lower() in HEIF and not _with_heif():
        return NEEDS_HEIF
    if isinstance(error, FileNotFoundError) and Path(path).is_symlink():
        return "a link to nothing"
    if isinstance(error, Image.UnidentifiedImageError):
        with open(path, "rb") as file:
            return _reason(error, file.read(256))
    return reason(error)


def _reason(error: Exception, start: bytes) -> str:
    """What is wrong with a file that begins like this."""
    if isinstance(error, Image.UnidentifiedImageError):
        if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS and not _with_heif():
            return NEEDS_HEIF
        start = start.lstrip().lower()
        if not start:
            return "the file is empty"
        if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<svg")):
            return "not an image but a web page" if b"html" in start else "not an image but XML or SVG"
    return reason(error)
