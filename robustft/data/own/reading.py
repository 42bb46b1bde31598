"""Reading images as people have them: the pixels a person sees, whatever the file makes of them.

| a file | gets |
|---|---|
| turned by its EXIF data | turned |
| with transparency, also in a palette | laid on white |
| 16 bits or floating point a channel | scaled to 8 bits |
| CMYK, grey, palette | RGB |
| animated, several pages | its first picture |
| HEIC | read where pillow-heif is installed, else refused with how to install it |
| larger than Pillow's limit for decompression bombs | refused |
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from robustft.common.errors import UserError, install
from robustft.data.reading import EXTENSIONS, reason

HEIF = (".heic", ".heif", ".hif")
OWN_EXTENSIONS = (*EXTENSIONS, ".jfif", ".jpe", ".gif", ".avif", ".jp2", ".apng", *HEIF)
HOW = "upright on white, 1"  # of the pixels' identity: another number, other pixels

MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")


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


def as_seen(image: Image.Image) -> Image.Image:
    """An opened image as RGB, upright, without transparency, in 8 bits."""
    image.seek(0) if getattr(image, "n_frames", 1) > 1 else None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        # 16-bit files are opened as I or I;16: the mode does not tell how far the values go.
        top = 65535.0 if image.mode != "F" and values.max(initial=0) > 255 else 255.0 if image.mode != "F" else 1.0
        image = Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _open(file) -> Image.Image:
    _with_heif()
    image = Image.open(file)
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
        return f"HEIC needs pillow-heif: {install('heif')}"
    if isinstance(error, Image.UnidentifiedImageError):
        with open(path, "rb") as file:
            start = file.read(256).lstrip().lower()
        if not start:
            return "the file is empty"
        if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<svg")):
            return "not an image but a web page" if b"html" in start else "not an image but XML or SVG"
    return reason(error)


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image by its name: no hidden file, and an extension of one."""
    return not name.startswith(".") and name.lower().endswith(OWN_EXTENSIONS)


def looks_like_image(path: str) -> bool:
    """Whether a file without an extension begins as an image does."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
