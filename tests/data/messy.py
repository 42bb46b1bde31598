"""Files as they lie about in people's folders, and what each of them gets: the table in docs/data.md.

    python -m tests.data.messy          # write it

The answers are asked for, one by one: whether ``data=folders`` takes the file, whether it can be read, and which pixels
come of it.
"""

import io
import re
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, features

from robustft.common.files import write
from robustft.data.own.listing import scan
from robustft.data.own.reading import read_upright, why_unreadable
from tests.small import ROOT

PAGE = ROOT / "docs" / "data.md"
BLOCK = re.compile(r"(<!-- files: messy -->\n\n)(.*?)(\n?<!-- end of files -->)", re.DOTALL)
RED, BLUE = (200, 0, 0), (0, 0, 200)
SIZE = (64, 32)


def halves(mode: str = "RGB") -> Image.Image:
    """Left red, right blue, twice as wide as high."""
    image = Image.new("RGB", SIZE, RED)
    image.paste(BLUE, (SIZE[0] // 2, 0, *SIZE))
    return image.convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    return saved(halves(), "JPEG", exif=exif, quality=95)


def see_through(mode: str) -> bytes:
    """The left half transparent."""
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    image.paste((*BLUE, 255), (SIZE[0] // 2, 0, *SIZE))
    if mode == "RGBA":
        return saved(image, "PNG")
    palette = Image.new("P", SIZE, 0)
    palette.putpalette([*RED, *BLUE])
    palette.paste(1, (SIZE[0] // 2, 0, *SIZE))
    return saved(palette, "PNG", transparency=0)


def animated(kind: str) -> bytes:
    frames = [halves(), Image.new("RGB", SIZE, BLUE)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def deep() -> bytes:
    return saved(Image.fromarray(np.linspace(0, 65535, SIZE[0]).astype(np.uint16)[None].repeat(SIZE[1], 0)), "PNG")


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 40,000 × 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    whole = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


JPEG, PNG = (lambda: saved(halves(), "JPEG", quality=95)), (lambda: saved(halves(), "PNG"))


def heic() -> bytes:
    from pillow_heif import from_pillow

    stream = io.BytesIO()
    from_pillow(halves()).save(stream, quality=95)
    return stream.getvalue()


# Path in the class folder, what it is, and what is in it; None: made by `place`.
FILES: list[tuple[str, str, Callable[[], bytes] | None]] = [
    ("turned.jpg", "turned by EXIF", turned),
    ("print.jpg", "CMYK", lambda: saved(halves("CMYK"), "JPEG", quality=95)),
    ("scan.png", "16 bits of grey", deep),
    ("grey.png", "grey", lambda: saved(halves("L"), "PNG")),
    ("clear.png", "left half transparent", lambda: see_through("RGBA")),
    ("palette.png", "palette, left half transparent", lambda: see_through("P")),
    ("moving.gif", "animated", lambda: animated("GIF")),
    ("moving.webp", "animated", lambda: animated("WEBP")),
    ("photo.webp", "WebP", lambda: saved(halves(), "WEBP")),
    ("photo.avif", "AVIF", lambda: saved(halves(), "AVIF")),
    ("photo.heic", "HEIC, with the extra `heif`", heic),
    ("photo.tif", "TIFF", lambda: saved(halves(), "TIFF")),
    ("PHOTO.JPG", "upper-case extension", JPEG),
    ("photo", "no extension, a JPEG", JPEG),
    ("wrong.png", "a JPEG called .png", JPEG),
    ("link.png", "symbolic link to an image", None),
    ("linked/1.png", "symbolic link to a folder", None),
    ("round/…", "symbolic link to the class folder itself", None),
    ("broken.png", "symbolic link to nothing", None),
    ("ä 日本.png", "unicode and a space", PNG),
    ("a=b, c.png", "`=` and a comma", PNG),
    ("deep/er/1.png", "in a folder of the class folder", PNG),
    (".hidden.png", "hidden", PNG),
    (".DS_Store", "system file", lambda: b"\0\0\0\1Bud1"),
    ("._photo.jpg", "macOS's twin of a file", lambda: b"\0\5\x16\7"),
    ("Thumbs.db", "system file", lambda: b"\xd0\xcf\x11\xe0"),
    ("desktop.ini", "system file", lambda: b"[.ShellClassInfo]"),
    ("__MACOSX/1.png", "system folder", PNG),
    ("notes.txt", "text", lambda: b"to do"),
    ("video.mp4", "video", lambda: b"\0\0\0\x18ftypmp42"),
    ("empty.jpg", "zero bytes", lambda: b""),
    ("page.jpg", "HTML saved as .jpg", lambda: b"<!DOCTYPE html><html>404</html>"),
    ("drawing.png", "SVG saved as .png", lambda: b"<?xml version='1.0'?><svg/>"),
    ("noise.png", "other bytes", lambda: b"0123456789" * 20),
    ("cut.jpg", "a JPEG cut short", lambda: JPEG()[:-40]),
    ("cut.png", "a PNG cut short", lambda: PNG()[:-40]),
    ("bomb.png", "40,000 × 40,000 pixels in 200 bytes", bomb),
]  # fmt: skip


def place(folder: Path, name: str, made: Callable[[], bytes] | None) -> Path:
    """Put one file into a class folder; its path."""
    path = folder / name
    if made is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made())
        return path
    elsewhere = folder.parent.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "1.png").write_bytes(PNG())
    targets = {"link.png": elsewhere / "1.png", "linked": elsewhere, "round": folder, "broken.png": elsewhere / "none"}
    first = name.split("/")[0]
    (folder / first).symlink_to(targets[first])
    return path


def outcome(root: Path, name: str, made: Callable[[], bytes] | None) -> str:
    """What a file in a class folder gets."""
    folder = root / "train" / "cat"
    (folder / "sure").mkdir(parents=True)
    (folder / "sure" / "0.png").write_bytes(PNG())
    path = place(folder, name, made)
    inner = set(scan(root / "train", "data.train").inner) - {"sure/0.png"}
    if not inner:
        return "passed over"
    (only,) = inner
    assert only == name
    if why := why_unreadable(str(path)):
        return f"refused: {why}"
    return seen(read_upright(str(path)))


def seen(image: Image.Image) -> str:
    """Which of the pixels that were put there are seen."""
    assert image.mode == "RGB"
    ends = [image.getpixel((3, 3)), image.getpixel((image.width - 4, image.height - 4))]
    if image.size == SIZE[::-1]:
        assert near(ends[0], RED) and near(ends[1], BLUE)
        return "taken, upright"
    assert image.size == SIZE
    if near(ends[0], RED) and near(ends[1], BLUE):
        return "taken"
    if near(ends[0], (255, 255, 255)) and near(ends[1], BLUE):
        return "taken, on white"
    assert len(set(ends[0])) == len(set(ends[1])) == 1  # grey
    if ends[0][0] < 20 and ends[1][0] > 235:
        return "taken, scaled to 8 bits"
    return "taken"


def near(pixel: tuple[int, ...], expected: tuple[int, ...], most: int = 30) -> bool:
    return all(abs(a - b) <= most for a, b in zip(pixel, expected, strict=True))


def rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Name, what it is and what it gets, of each file."""
    for number, (name, what, made) in enumerate(FILES):
        if name.endswith(".avif") and not features.check("avif"):
            continue
        yield name, what, outcome(folder / str(number), name, made)


def table(folder: Path) -> str:
    lines = ["| file in a class folder | what it is | what it gets |", "|---|---|---|"]
    lines += [f"| `{name}` | {what} | {got} |" for name, what, got in rows(folder)]
    return "\n".join(lines) + "\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        made = table(Path(folder))
    page = PAGE.read_text("utf-8")
    write(PAGE, BLOCK.sub(lambda found: f"{found[1]}{made}\n<!-- end of files -->", page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
