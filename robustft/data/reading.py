"""Image files: reading one, and telling those that cannot be read."""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from robustft.common.errors import UserError
from robustft.common.terminal import tracked
from robustft.common.wording import on_one_line

# What is read, whatever a file is called: nothing that Pillow hands to another program (EPS, to Ghostscript).
FORMATS = "AVIF BMP GIF HEIF JPEG JPEG2000 MPO PNG PPM TIFF WEBP".split()
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # a JPEG's markers of what holds its height and width
STRIP = 2**22  # pixels that are converted at a time where a conversion takes many times the room of its result

# Some of ImageNet's photographs carry broken camera data; their pixels are fine.
warnings.filterwarnings("ignore", "(Possibly )?[Cc]orrupt EXIF data", UserWarning)


def read_image(path: str) -> Image.Image:
    """The image as RGB.

    Raises:
        UserError: with the path, where the file is missing, truncated or no image.
    """
    try:
        with open(path, "rb") as file:
            return opened(file).convert("RGB")
    except Exception as error:  # PIL raises a dozen kinds for damaged files, SyntaxError among them
        raise UserError(
            f"Cannot read the image {path}: {reason(error)}. "
            "Fetch it again or remove it; check=data lists all such files."
        ) from error


def opened(file: io.BufferedReader | io.BytesIO | str, formats: Sequence[str] = FORMATS) -> Image.Image:
    """The image in a file, if it is of one of these formats; its pixels are not decoded yet."""
    Image.init()  # of the formats that Pillow does not know from the start
    return Image.open(file, formats=[name for name in formats if name in Image.OPEN])


def as_seen(image: Image.Image) -> Image.Image:
    """An opened image as RGB, upright, without transparency, in 8 bits."""
    image.seek(0) if getattr(image, "n_frames", 1) > 1 else None
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied, whatever its size
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        white = _white(image)
        return _in_strips(image, lambda strip: _in_8_bits(strip, white))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _in_strips(image, _on_white)
    return image.convert("RGB")


def _white(image: Image.Image) -> float:
    """The value that is white in an image of one deep channel: neither its mode nor the file tells how far values go.

    Returns:
        255 or 65535, or 1 of floating point, the least that no value is above; else the highest value. Floating point
        may be half above it: resampling overshoots.
    """
    floating = image.mode == "F"
    extrema: Any = image.getextrema() if image.mode in ("I", "F", "I;16") else None
    most = np.asarray(image).max(initial=0) if extrema is None else extrema[1]
    if not math.isfinite(most):
        values = np.asarray(image)
        most = np.max(values, initial=0, where=np.isfinite(values))
    ends = (1.0, 255.0, 65535.0) if floating else (255.0, 65535.0)
    return next((end for end in ends if end * (1.5 if floating else 1) >= most), float(most))


def _in_8_bits(image: Image.Image, white: float) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, np.float64), posinf=white, neginf=0)
    return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA"))


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What a pixelwise conversion makes of an image, as RGB. A large one is converted piece by piece: in 8 bytes a
    value, or in three copies, one that Pillow's limit lets pass would take 5 GB.
    """
    if image.width * image.height <= STRIP:
        return convert(image).convert("RGB")
    made = Image.new("RGB", image.size)
    width, height = min(image.width, STRIP), max(1, STRIP // image.width)
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            strip = image.crop((left, top, min(left + width, image.width), min(top + height, image.height)))
            made.paste(convert(strip), (left, top))
    return made


def decoding_error(path: str) -> str | None:
    """What keeps an image from being decoded; None where nothing does."""
    try:
        with open(path, "rb") as file:
            opened(file).load()
    except Exception as error:
        return reason(error)
    return None


def damaged_files(
    paths: Sequence[str], *, thorough: bool, title: str, decode: Callable[[str], str | None] = decoding_error
) -> dict[str, str]:
    """Paths of unreadable and truncated images, with the reason.

    Thorough means decoding every image. Otherwise only the ends of the files are read, and only a file that does not
    end as its format should, or says that it has more pixels than Pillow takes, is decoded: that finds truncated files,
    files that are no images and decompression bombs at a hundredth of the cost, and never blames a good one.

    Args:
        decode: says what is wrong with a file, by decoding it.
    """
    examine = decode if thorough else lambda path: _ending_error(path, decode)
    chunks = [paths[i : i + 64] for i in range(0, len(paths), 64)]  # a task for each of a million files is dear
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        reasons = pool.map(lambda chunk: [examine(path) for path in chunk], chunks)
        done: Iterable[tuple[Sequence[str], list[str | None]]] = zip(chunks, reasons, strict=True)
        if thorough or len(paths) > 20_000:
            done = tracked(done, title, len(chunks))
        return {path: reason for pair in done for path, reason in zip(*pair, strict=True) if reason}


def _ending_error(path: str, decode: Callable[[str], str | None]) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(32)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64))
            if _is_complete(head, file.read(), size) and 0 < _pixels(file, head) <= (
                Image.MAX_IMAGE_PIXELS or math.inf
            ):
                return None
    except Exception as error:
        return reason(error)
    return decode(path)


def _is_complete(head: bytes, tail: bytes, size: int) -> bool:
    """Whether a file's begin and end are those of a whole JPEG, PNG, WebP or GIF."""
    if head[:2] == b"\xff\xd8":
        return b"\xff\xd9" in tail
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8 == size
    if head[:4] == b"GIF8":
        return tail.endswith(b"\x3b")
    return head[:4] == b"\x89PNG" and b"IEND\xaeB`\x82" in tail


def _pixels(file: io.FileIO, head: bytes) -> int:
    """How many pixels a JPEG, PNG, WebP or GIF says it has; 0 where that cannot be told without decoding it."""
    kind, little = head[12:16], partial(int.from_bytes, byteorder="little")
    if head[:2] == b"\xff\xd8":
        return _pixels_of_jpeg(file)
    if head[:4] == b"\x89PNG":
        return int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big")
    if head[:4] == b"GIF8":  # its first picture may be larger than it says of the whole
        file.seek(0)
        return math.prod(opened(io.BufferedReader(file)).size)
    if kind == b"VP8X":
        return (1 + little(head[24:27])) * (1 + little(head[27:30]))
    if kind == b"VP8L":
        bits = little(head[21:25])
        return (1 + bits % 2**14) * (1 + (bits >> 14) % 2**14)
    return (little(head[26:28]) % 2**14) * (little(head[28:30]) % 2**14) if kind == b"VP8 " else 0


def _pixels_of_jpeg(file: io.FileIO) -> int:
    place = 2
    for _ in range(1000):  # segments before the frame's; real files have ten or so
        file.seek(place)
        segment = file.read(9)
        if len(segment) < 9 or segment[0] != 0xFF:
            break
        if segment[1] in FRAMES:
            return int.from_bytes(segment[5:7], "big") * int.from_bytes(segment[7:9], "big")
        place += 2 + int.from_bytes(segment[2:4], "big")
    return 0


def reason(error: Exception) -> str:
    """What an error of Pillow or of the file system says, in short."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    return error.strerror if isinstance(error, OSError) and error.strerror else on_one_line(error)
