"""Damaged files: whole ones of every kind, and strategies of hypothesis that spoil them."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

WORDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@st.composite
def spoiled(draw: st.DrawFn, wholes: Sequence[bytes]) -> tuple[str, bytes]:
    """What was done, and one of these files after it: flipped, overwritten, cut, parts of it lost or another's."""
    content = bytearray(draw(st.sampled_from(wholes)))
    done = []
    for _ in range(draw(st.integers(1, 3))):
        place = st.integers(0, max(0, len(content) - 1))
        near = st.one_of(st.integers(0, min(96, max(0, len(content) - 1))), place)  # headers more often
        match draw(st.sampled_from(("flip", "flip", "word", "cut", "lose", "repeat", "splice", "noise", "grow"))):
            case "flip":
                bits = draw(st.lists(st.tuples(near, st.integers(0, 7)), min_size=1, max_size=16))
                for at, bit in bits:
                    content[at] ^= 1 << bit
                done.append(f"{len(bits)} bits flipped")
            case "word":
                at, value = draw(near), draw(st.sampled_from(WORDS))
                size = draw(st.sampled_from([n for n in (1, 2, 4, 8) if value < 1 << (8 * n)]))
                content[at : at + size] = value.to_bytes(size, draw(st.sampled_from(("big", "little"))))
                done.append(f"{value:#x} at {at}")
            case "cut":
                del content[(at := draw(near)) :]
                done.append(f"cut at {at}")
            case "lose":
                at, size = draw(near), draw(st.integers(1, 64))
                del content[at : at + size]
                done.append(f"{size} bytes lost at {at}")
            case "repeat":
                at, size = draw(near), draw(st.integers(1, 64))
                content[at:at] = content[at : at + size] * draw(st.integers(1, 8))
                done.append(f"{size} bytes repeated at {at}")
            case "splice":
                other, at = draw(st.sampled_from(wholes)), draw(place)
                content[at:] = other[draw(st.integers(0, max(0, len(other) - 1))) :]
                done.append(f"another file from {at} on")
            case "noise":
                at, random = draw(near), draw(st.binary(min_size=1, max_size=32))
                content[at : at + len(random)] = random
                done.append(f"noise at {at}")
            case "grow":
                content += draw(st.binary(min_size=1, max_size=64))
                done.append("a tail")
        if not content:
            break
    return ", ".join(done), bytes(content)


# Values that may stand in a JSON file where something else is expected.
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(("../../x", "<script>", "${oc.env:HOME}", "1e999", "os.system", 10**400, -1, "")),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> tuple[str, Any]:
    """What was done, and a JSON value with up to three of its parts gone, replaced, moved or renamed."""
    value = _copy(whole)
    done = []
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = value
        where: list[str] = []
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            where.append(str(key))
            inner = holder[key]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                holder = inner
                continue
            match draw(st.sampled_from(("gone", "other", "other", "copy"))):
                case "gone":
                    del holder[key]
                    done.append(f"{'.'.join(where)} gone")
                case "other":
                    holder[key] = _copy(draw(VALUES))
                    done.append(f"{'.'.join(where)}={holder[key]!r:.40}")
                case "copy":
                    holder[key] = _copy(draw(st.sampled_from([whole, inner, value])))
                    done.append(f"{'.'.join(where)} from elsewhere")
            break
    return ", ".join(done), value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def images() -> dict[str, bytes]:
    """Small whole image files, by name: every format that is read, in its kinds."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
    Image.init()
    random = np.random.default_rng(0)
    photo = Image.fromarray(np.uint8(np.add.outer(np.arange(40), np.arange(48))[..., None] * [1, 2, 3] % 251), "RGB")
    noise = Image.fromarray(random.integers(0, 256, (40, 48, 3), np.uint8), "RGB")
    grey, alpha = photo.convert("L"), noise.copy()
    alpha.putalpha(grey)
    deep = Image.fromarray(random.integers(0, 65536, (40, 48)).astype(np.uint16))
    real = Image.fromarray(random.random((40, 48)).astype(np.float32))
    palette = photo.quantize(16)
    turned = Image.Exif()
    turned[0x0112] = 6
    made: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "plain.jpg": (photo, "JPEG", {}),
        "progressive.jpg": (noise, "JPEG", {"progressive": True, "exif": turned}),
        "grey.jpeg": (grey, "JPEG", {"restart_marker_blocks": 2}),
        "cmyk.jpg": (photo.convert("CMYK"), "JPEG", {}),
        "plain.png": (photo, "PNG", {}),
        "alpha.png": (alpha, "PNG", {"dpi": (72, 72)}),
        "deep.png": (deep, "PNG", {}),
        "bits.png": (grey.convert("1"), "PNG", {}),
        "palette.png": (palette, "PNG", {"transparency": bytes(range(16))}),
        "animated.apng": (photo, "PNG", {"save_all": True, "append_images": [noise], "exif": turned}),
        "lossy.webp": (photo, "WEBP", {"exif": turned}),
        "lossless.webp": (alpha, "WEBP", {"lossless": True}),
        "animated.webp": (photo, "WEBP", {"save_all": True, "append_images": [noise]}),
        "plain.gif": (palette, "GIF", {"transparency": 3}),
        "animated.gif": (palette, "GIF", {"save_all": True, "append_images": [noise.quantize(64)]}),
        "plain.bmp": (photo, "BMP", {}),
        "palette.bmp": (palette, "BMP", {}),
        "plain.tif": (photo, "TIFF", {}),
        "lzw.tiff": (noise, "TIFF", {"compression": "tiff_lzw"}),
        "deflate.tif": (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (photo, "TIFF", {"compression": "jpeg"}),
        "float.tif": (real, "TIFF", {}),
        "pages.tif": (grey, "TIFF", {"save_all": True, "append_images": [grey, grey], "tiffinfo": {274: 6}}),
        "plain.ppm": (photo, "PPM", {}),
        "deep.pgm": (deep, "PPM", {}),
        "plain.jp2": (photo, "JPEG2000", {}),
        "plain.avif": (photo, "AVIF", {}),
        "plain.heic": (photo, "HEIF", {}),
    }
    files = {}
    for name, (image, kind, options) in made.items():
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        files[name] = stream.getvalue()
    return files


def bombs(few: bool = False) -> dict[str, bytes]:
    """Small files that ask for much: all of Pillow's limit of pixels, very long lines, many pictures, long texts.

    Args:
        few: only those that are made in a second.
    """
    files = {}

    def save(name: str, image: Image.Image, kind: str, **options: Any) -> None:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        files[name] = stream.getvalue()

    for name, (width, height) in {"row.png": (100_000, 1), "column.png": (1, 100_000)}.items():
        files[name] = png(width, height, 8, 2)
    save("row.jpg", Image.new("RGB", (65_500, 1)), "JPEG")
    save("column.webp", Image.new("RGB", (3, 16_000)), "WEBP")
    text = b"Comment\0\0" + zlib.compress(bytes(64 * 2**20))
    whole = png(8, 8, 8, 2)
    files["text.png"] = whole[:33] + _chunk(b"zTXt", text) + whole[33:]
    files["texts.png"] = whole[:33] + _chunk(b"tEXt", b"a\0b") * 200_000 + whole[33:]
    if few:
        return files
    side = 13_300  # just below the limit
    for mode, depth, colour in (("bits", 1, 0), ("grey", 8, 0), ("deep", 16, 0), ("palette", 8, 3), ("alpha", 8, 6)):
        files[f"{mode}.png"] = png(side, side, depth, colour)
    files["deep-alpha.png"] = png(side, side, 16, 6)
    files["above.png"] = png(40_000, 40_000, 1, 0)
    files["line.png"] = png(10**7, 3, 8, 2)
    save("large.jpg", Image.new("L", (13_000, 13_000)), "JPEG", quality=10)
    save("float.tif", Image.new("F", (11_000, 11_000)), "TIFF", compression="tiff_adobe_deflate")
    save("turned.tif", Image.new("LA", (9_000, 9_000)), "TIFF", compression="tiff_adobe_deflate", tiffinfo={274: 6})
    pictures = [Image.new("L", (16, 16), k % 256) for k in range(3_000)]
    save("pictures.gif", pictures[0], "GIF", save_all=True, append_images=pictures[1:])
    save("pages.tif", Image.new("L", (8, 8)), "TIFF", save_all=True, append_images=[Image.new("L", (8, 8))] * 500)
    files["profile.png"] = whole[:33] + _chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(256 * 2**20))) + whole[33:]
    return files


def png(width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG of zeros, made line by line.

    Args:
        colour: 0 grey, 2 RGB, 3 palette with transparency, 6 RGB and alpha.
    """
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    line = bytes(1 + (width * depth * channels + 7) // 8)
    squeeze = zlib.compressobj(1)
    data = b"".join(squeeze.compress(line) for _ in range(height)) + squeeze.flush()
    parts = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    parts += [_chunk(b"PLTE", bytes(48)), _chunk(b"tRNS", bytes(16))] if colour == 3 else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, _chunk(b"IDAT", data), _chunk(b"IEND", b"")])


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def suffixes(files: Mapping[str, bytes]) -> list[str]:
    """The extensions of some files, each once."""
    return sorted({name.rpartition(".")[2] for name in files})
