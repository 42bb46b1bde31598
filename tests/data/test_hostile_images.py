"""Image files that ask for more than they should: programs to be started, memory, time."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustft.common.errors import UserError
from robustft.data import reading, sets
from robustft.data.own.reading import read_sent, read_upright, why_unreadable
from robustft.data.reading import as_seen, decoding_error, read_image
from robustft.data.sets import Preprocess
from tests.faults.mutations import png

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 8 8 rectfill
%%EOF
"""


@pytest.mark.parametrize("read", [read_image, read_upright, decoding_error, why_unreadable])
def test_postscript_is_no_image_whatever_it_is_called(read, tmp_path: Path, monkeypatch) -> None:
    """Pillow hands it to Ghostscript, a language that can do a lot."""
    path = tmp_path / "cat.jpg"
    path.write_bytes(EPS)
    started: list[object] = []
    monkeypatch.setattr(subprocess, "check_call", lambda command, **_: started.append(command))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    try:
        said = read(str(path))
    except UserError as error:
        said = str(error)
    assert not started
    assert isinstance(said, str) and "not an image" in said


def test_what_is_converted_in_pieces_is_what_is_converted_at_once(monkeypatch) -> None:
    random = np.random.default_rng(0)
    deep = random.integers(0, 65536, (37, 53), np.uint16)
    colours = Image.fromarray(random.integers(0, 256, (37, 53, 4), np.uint8), "RGBA")
    palette = Image.fromarray(random.integers(0, 256, (37, 53, 3), np.uint8), "RGB").quantize(16)
    palette.info["transparency"] = bytes(range(0, 160, 10))
    images = [Image.fromarray(deep), Image.fromarray(deep.astype(np.int32)), Image.fromarray(deep / np.float32(65535))]
    images += [colours, colours.convert("LA"), palette]
    whole = [np.asarray(as_seen(image)) for image in images]
    monkeypatch.setattr(reading, "STRIP", 100)  # one row and a bit
    for image, expected in zip(images, whole, strict=True):
        assert np.array_equal(np.asarray(as_seen(image)), expected), image.mode
    monkeypatch.setattr(reading, "STRIP", 7)  # less than a row
    for image, expected in zip(images, whole, strict=True):
        assert np.array_equal(np.asarray(as_seen(image)), expected), image.mode


@pytest.mark.parametrize("size", [(900, 1), (1, 900), (901, 2), (3, 1201)])
@pytest.mark.parametrize("crop", [1.0, 0.9])
def test_the_middle_of_a_long_image_is_that_of_the_whole(size, crop, monkeypatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    transform = Preprocess(32, (0, 0, 0), (1, 1, 1), crop=crop)
    whole = transform.pixels(Image.fromarray(values, "RGB"))
    monkeypatch.setattr(sets, "LARGEST", 100 * 32**2)
    seen: list[tuple[int, int]] = []
    middle = sets._middle
    monkeypatch.setattr(sets, "_middle", lambda image, *how: seen.append(image.size) or middle(image, *how))
    part = transform.pixels(Image.fromarray(values, "RGB"))
    assert seen == [size]
    assert (part.int() - whole.int()).abs().max() <= 1 and (part == whole).float().mean() > 0.99


def test_a_kilobyte_of_a_line_does_not_fill_the_memory(monkeypatch) -> None:
    """Resized to 224 on its shorter side it would have 5 billion pixels."""
    resized: list[int] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *how, **options) -> Image.Image:
        resized.append(size[0] * size[1])
        return resize(image, (min(size[0], 1000), min(size[1], 1000)), *how, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    image = read_sent(png(100_000, 1, 8, 2))
    assert Preprocess(224, (0, 0, 0), (1, 1, 1)).pixels(image).shape == (3, 224, 224)
    assert resized and max(resized) <= sets.LARGEST


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Invalid input: Unexpected end of file\n"), "Invalid input: Unexpected end of file"),
        (ValueError("one\ntwo"), "one two"),
        (MemoryError(), "it takes more memory than there is"),
        (EOFError(), "EOFError"),
        (FileNotFoundError(2, "No such file or directory"), "No such file or directory"),
        (ValueError("x" * 9999), None),
    ],
    ids=str,
)
def test_reasons_are_one_short_line(error: Exception, said: str | None) -> None:
    found = reading.reason(error)
    assert found == said if said is not None else len(found) < 500
