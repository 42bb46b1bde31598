"""Sheets of small labelled pictures, drawn with PIL alone: images, maps and masks as the patches they are made of."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from robustft.common.files import atomic

Picture = UInt8[np.ndarray, "side side 3"]
Colour = tuple[int, int, int]

SMALLEST, LARGEST = 192, 256  # pixels a side of a picture: smaller images are enlarged, larger ones reduced
INK, FAINT, PAPER = (25, 25, 25), (110, 110, 110), (255, 255, 255)
BLUE, ORANGE = (0, 90, 170), (200, 75, 0)  # told apart by every kind of colour vision
HEAT = ((10, 20, 90), (30, 85, 170), (125, 145, 165), (235, 190, 60), (255, 240, 70))  # dark blue to light yellow
GREY = 205  # of what is not there


class Column(NamedTuple):
    """Two lines above a column; a marked one gets a bar."""

    title: str
    note: str = ""
    marked: bool = False


class Tile(NamedTuple):
    """A picture and the line below it."""

    picture: Picture
    caption: str = ""
    colour: Colour = FAINT


def picture(image: UInt8[Tensor, "3 height width"]) -> Picture:
    """A square image at the size it is shown at: enlarged smoothly, by a whole number, or reduced."""
    size = image.shape[-1]
    pixels = image.permute(1, 2, 0).cpu().numpy()
    shown = LARGEST if size > LARGEST else -(-SMALLEST // size) * size
    way = Image.Resampling.LANCZOS if shown < size else Image.Resampling.BICUBIC
    return pixels if shown == size else np.asarray(Image.fromarray(pixels).resize((shown, shown), way))


def heat(shown: Picture, cam: Float[Tensor, "rows columns"]) -> Picture:
    """The image in grey under the map's colours; the map runs from 0 to 1, one value a patch."""
    grey = shown.mean(2, keepdims=True)
    return (0.45 * grey + 0.55 * _colours(_spread(cam, len(shown)))).astype(np.uint8)


def hatched(shown: Picture, mask: Bool[Tensor, "rows columns"]) -> Picture:
    """Masked patches pale under dark diagonal lines, with a dark edge."""
    masked = _spread(mask, len(shown))
    step = max(len(shown) // 18, 6)
    lines = np.add.outer(np.arange(len(shown)), np.arange(len(shown))) % step < step // 3
    pale = (0.25 * shown + 0.75 * 235).astype(np.uint8)
    drawn = np.where(masked[..., None], np.where(lines[..., None], 90, pale), shown).astype(np.uint8)
    return outlined(drawn, mask, INK)


def blanked(shown: Picture, mask: Bool[Tensor, "rows columns"]) -> Picture:
    """Masked patches in plain grey: they do not exist."""
    return np.where(_spread(mask, len(shown))[..., None], GREY, shown).astype(np.uint8)


def outlined(shown: Picture, mask: Bool[Tensor, "rows columns"], colour: Colour, width: int = 2) -> Picture:
    """The edge of a mask of any resolution, drawn on its inside."""
    inside = _spread(mask, len(shown))
    core = inside.copy()
    for _ in range(width):
        padded = np.pad(core, 1)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.where((inside & ~core)[..., None], np.array(colour, np.uint8), shown)


def sheet(title: str, columns: Sequence[Column], rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Rows of tiles under their columns' titles, with the title and the scale of the maps above all."""
    side = len(rows[0][0].picture)
    size = min(max(side // 11, 13), 17)  # of the letters
    line, gap = round(1.35 * size), size
    top = gap + 2 * line  # where the columns' titles begin
    first = top + 2 * line + gap // 2
    height = side + line + gap // 2
    canvas = Image.new("RGB", (gap + len(columns) * (side + gap), first + len(rows) * height + gap // 2), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.fontmode = "L"
    font = _font(size)
    large = _font(round(1.2 * size))
    room = _scale(canvas, draw, font, gap, line) - 2 * gap
    draw.text((gap, gap // 2), _fitting(title, large, room), INK, large)
    for number, column in enumerate(columns):
        x = gap + number * (side + gap)
        draw.text((x, top), _fitting(column.title, font, side), INK, font)
        draw.text((x, top + line), _fitting(column.note, font, side), ORANGE if column.marked else FAINT, font)
        if column.marked:
            draw.rectangle((x, first - 5, x + side - 1, first - 3), ORANGE)
        for y, row in enumerate(rows):
            tile = row[number]
            canvas.paste(Image.fromarray(tile.picture), (x, first + y * height))
            text = _fitting(tile.caption, font, side)
            draw.text((x, first + y * height + side + 1), text, tile.colour, font)
    return canvas


def save(path: Path, image: Image.Image) -> Path:
    """Writes a PNG that is either whole or not there; its folder is made."""
    with atomic(path) as partial:
        image.save(partial, "PNG", compress_level=3)  # 9 takes ten times as long for a tenth less
    return path


def _scale(canvas: Image.Image, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, gap: int, line: int) -> int:
    """The maps' colours from 0 to 1, at the upper right; where they begin."""
    width = 8 * line
    right = canvas.width - gap - round(font.getlength("1")) - gap // 2
    ramp = np.broadcast_to(_colours(np.linspace(0, 1, width)), (line * 2 // 3, width, 3)).astype(np.uint8)
    canvas.paste(Image.fromarray(ramp), (right - width, gap // 2 + line // 4))
    draw.text((right + gap // 2, gap // 2), "1", FAINT, font)
    label = "map: 0"
    left = right - width - gap // 2 - round(font.getlength(label))
    draw.text((left, gap // 2), label, FAINT, font)
    return left


def _colours(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "... 3"]:
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, stops, channel) for channel in zip(*HEAT, strict=True)], -1)


def _spread(patches: Tensor, side: int) -> np.ndarray:
    """Every patch's value at all the pixels it covers."""
    values = patches.cpu().numpy()
    rows, columns = (np.arange(side) * count // side for count in values.shape)
    return values[rows[:, None], columns]


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # what PIL gives where it has FreeType, as its wheels do
    return font


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, shortened at its end if it is too long."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
