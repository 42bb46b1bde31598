"""Image files as people have them: what each of them gets."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from robustft.common.errors import UserError
from robustft.data import filedata
from robustft.data.own.folders import FolderImages
from robustft.data.own.listing import scan
from robustft.data.own.reading import read_upright, why_unreadable
from robustft.data.reading import damaged_files
from robustft.data.sets import Preprocess

from . import messy
from .messy import BLUE, RED, bomb
from .own import HALF, OPTIONS, colour

GREEN = (0, 200, 0)


def halves(size: tuple[int, int] = (20, 10)) -> Image.Image:
    """Left red, right blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def near(pixel: tuple[int, ...], expected: tuple[int, ...], most: int = 12) -> bool:
    return len(pixel) == 3 and all(abs(a - b) <= most for a, b in zip(pixel, expected, strict=True))


def test_an_image_turned_by_its_camera_is_seen_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    halves().save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_upright(str(tmp_path / "a.jpg"))
    assert image.size == (10, 20) and near(image.getpixel((5, 2)), RED) and near(image.getpixel((5, 17)), BLUE)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (*RED, 0))
    clear.paste((*BLUE, 255), (4, 0, 8, 8))
    clear.save(tmp_path / "rgba.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([*RED, *BLUE])
    palette.paste(1, (4, 0, 8, 8))
    palette.save(tmp_path / "p.png", transparency=0)
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "la.png")
    for name in ("rgba.png", "p.png"):
        image = read_upright(str(tmp_path / name))
        assert near(image.getpixel((1, 1)), (255, 255, 255)) and near(image.getpixel((6, 1)), BLUE), name
    assert near(read_upright(str(tmp_path / "la.png")).getpixel((0, 0)), (255, 255, 255))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16).repeat(3, 0)).save(tmp_path / name)
    image = read_upright(str(tmp_path / name))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_floating_point_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "a.tif")
    image = read_upright(str(tmp_path / "a.tif"))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "kind", "seen"),
    [
        ((0, 100, 255), np.float32, (0, 100, 255)),
        ((0, 32768, 65535), np.float32, (0, 128, 255)),
        ((0, 50_000, 100_000), np.float32, (0, 128, 255)),
        ((0, 50_000, 100_000), np.int32, (0, 128, 255)),
        ((-5, np.nan, 0.5, 1), np.float32, (0, 0, 128, 255)),
        ((0, 100, np.inf, 200), np.float32, (0, 100, 255, 200)),
        ((0, 0, 0), np.float32, (0, 0, 0)),
        ((0, 0.5, 1, 1.2), np.float32, (0, 128, 255, 255)),  # overshoots
        ((0, 100, 255, 300), np.float32, (0, 100, 255, 255)),
        ((0, 100, 255), ">u2", (0, 100, 255)),
        ((0, 32768, 65535), ">u2", (0, 128, 255)),
    ],
)
def test_deep_images_are_scaled_by_their_values(tmp_path: Path, values: tuple, kind: type | str, seen: tuple) -> None:
    """Floating point beyond 1 was all white, and so was what is above 65535."""
    Image.fromarray(np.array([values], kind)).save(tmp_path / "a.tif")
    image = read_upright(str(tmp_path / "a.tif"))
    assert tuple(image.getpixel((x, 0))[0] for x in range(len(values))) == seen


def test_of_an_animation_the_first_picture_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.webp", "a.png"):
        extra = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=50, **extra)
        assert near(read_upright(str(tmp_path / name)).getpixel((4, 4)), RED), name


@pytest.mark.parametrize("name", ["a.webp", "a.avif", "a.bmp", "a.tiff", "a.gif", "a.jp2", "a.JPG", "a.Jpeg", "a.jfif"])
def test_formats(tmp_path: Path, name: str) -> None:
    codec = {"avif": "avif", "jp2": "jpg_2000"}.get(name[2:])
    if codec and not features.check(codec):
        pytest.skip(f"Pillow was built without {codec}")
    halves((64, 64)).save(tmp_path / name, **({"format": "JPEG"} if name == "a.jfif" else {}))
    assert near(read_upright(str(tmp_path / name)).getpixel((5, 5)), RED, 20)
    (tmp_path / "c").mkdir()
    os.rename(tmp_path / name, tmp_path / "c" / name)
    assert scan(tmp_path, "data.train").names == [f"c/{name}"]


def test_heic_needs_an_extra(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 30)
    try:
        import pillow_heif
    except ImportError:
        assert "HEIC needs pillow-heif: pip install" in str(why_unreadable(str(path)))
    else:
        pillow_heif.from_pillow(halves((64, 64))).save(path)
        assert near(read_upright(str(path)).getpixel((5, 5)), RED, 20)


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "JPEG")
    return stream.getvalue()


DAMAGED = {
    "empty.jpg": (b"", "the file is empty"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "not an image but a web page"),
    "drawing.png": (b"<?xml version='1.0'?><svg/>", "not an image but XML or SVG"),
    "noise.png": (b"0123456789" * 20, "not an image"),
    "cut.jpg": (jpeg()[:900], "runcated"),
    "cut.png": (bomb()[:60], ""),
    "bomb.png": (bomb(), "decompression bomb"),
}


def written_in_many_ways(folder: Path) -> list[str]:
    """Images of 40 by 30 pixels, in every format of which the ends of files are looked at."""
    image, frames = Image.effect_noise((40, 30), 60).convert("RGB"), [Image.new("L", (40, 30), n) for n in (9, 99)]
    ways: dict[str, dict] = {
        "a.jpg": {},
        "progressive.jpg": {"progressive": True},
        "much-before-the-frame.jpg": {"icc_profile": bytes(70_000), "exif": b"Exif\0\0" + bytes(3000)},
        "a.png": {},
        "lossy.webp": {},
        "lossless.webp": {"lossless": True},
        "profile.webp": {"icc_profile": bytes(1000)},
        "a.gif": {},
    }
    for name, options in ways.items():
        image.save(folder / name, **options)
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    return [str(path) for path in sorted(folder.iterdir())]


def test_pixels_are_counted_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every format: only the PNGs once were, and the others stopped a run in the middle."""
    paths = written_in_many_ways(tmp_path)

    def decode(path: str) -> str:
        raise AssertionError(f"{path} is decoded")

    assert damaged_files(paths, thorough=False, title="", decode=decode) == {}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30)
    assert damaged_files(paths, thorough=False, title="", decode=decode) == {}  # as many as may be
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 // 2 - 1)
    damaged = damaged_files(paths, thorough=False, title="", decode=why_unreadable)
    assert list(damaged) == paths and all("decompression bomb" in reason for reason in damaged.values())


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_found_before_training(tmp_path: Path, name: str) -> None:
    for k, kind in enumerate(("cat", "dog")):
        for i in range(4):
            colour(tmp_path / kind / f"{i}.png", 10 * k + i)
    content, words = DAMAGED[name]
    (tmp_path / "dog" / name).write_bytes(content)
    data = FolderImages(**{**OPTIONS, "batch_size": 2}, train=str(tmp_path))
    with pytest.raises(UserError) as error:
        data.verify()
    message = str(error.value)
    assert str(tmp_path / "dog" / name) in message and words in message and "\n" not in message


def test_what_is_taken_from_a_messy_folder(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "train", tmp_path / "elsewhere"
    taken = ["a b.png", "a=b,c.png", "ä 日本.png", "UPPER.PNG", "deep/er/1.png", "linked.png", "linked folder/1.png"]
    for number, name in enumerate((*taken[:5], ".hidden.png", "._1.png", ".DS_Store.png")):
        colour(root / "cat" / name, number)
    colour(elsewhere / "1.png", 90)
    (root / "cat" / "linked.png").symlink_to(elsewhere / "1.png")
    (root / "cat" / "linked folder").symlink_to(elsewhere)
    (root / "cat" / "round").symlink_to(root / "cat")  # into itself
    (root / "cat" / "extensionless").write_bytes((elsewhere / "1.png").read_bytes())
    for junk in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "README", "video.mp4"):
        (root / "cat" / junk).write_bytes(b"no image")
    for empty in ("empty", ".git", "__MACOSX", "only junk"):
        (root / empty).mkdir()
    (root / "only junk" / "Thumbs.db").write_bytes(b"x")
    colour(root / "__MACOSX" / "1.png", 91)
    colour(root / "lies about.png", 92)
    colour(root / "dog=1, a" / "1.png", 93)
    found = scan(root, "data.train")
    assert sorted(found.inner[: len(found) - 1]) == sorted([*taken, "extensionless"])
    assert set(found.classes) == {"cat", "dog=1, a"}
    images = FolderImages(**OPTIONS, train=str(root)).images("train")
    assert all(images[i][0].shape == (3, 16, 16) for i in range(len(images)))


def test_the_table_of_the_page_is_what_happens(tmp_path: Path) -> None:
    if not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    pytest.importorskip("pillow_heif")
    found = messy.BLOCK.search(messy.PAGE.read_text("utf-8"))
    assert found is not None and found[2].strip() == messy.table(tmp_path).strip()


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    colour(tmp_path / "flat" / "1.png", 1)
    with pytest.raises(UserError, match="1 image lies in it directly"):
        scan(tmp_path / "flat", "data.train")
    for split in ("train", "val"):
        colour(tmp_path / "splits" / split / "cat" / "1.png", 1)
    with pytest.raises(UserError, match="it holds .*which are no classes. Give data.train=.*/train data.val=.*/val"):
        scan(tmp_path / "splits", "data.train")
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="Its folders are empty"):
        scan(tmp_path / "hollow", "data.train")


def test_files_that_were_good_are_not_read_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTFT_CACHE", str(tmp_path / "cache"))
    for k, kind in enumerate(("cat", "dog")):
        for i in range(4):
            colour(tmp_path / "train" / kind / f"{i}.png", 10 * k + i)
    asked: list[list[str]] = []

    def look(paths: list[str], **options: object) -> dict[str, str]:
        asked.append(sorted(os.path.basename(path) for path in paths))
        return damaged_files(paths, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(filedata, "damaged_files", look)

    def start(**options: object) -> list[str]:
        FolderImages(**{**OPTIONS, "batch_size": 2, **options}, train=str(tmp_path / "train")).verify()
        return asked.pop()

    assert len(start()) == 8
    assert start() == []
    assert start(preprocess=Preprocess(8, HALF, HALF)) == []  # other pixels, the same files
    changed = tmp_path / "train" / "dog" / "2.png"
    colour(changed, 99)
    assert "2.png" in start() and start() == []
    changed.write_bytes(changed.read_bytes()[:100])  # cut off in place
    for _ in range(2):  # what is damaged is never remembered as good
        with pytest.raises(UserError, match="2.png"):
            start()
        assert asked.pop()
