"""Six kinds of sketches and eight kinds of renditions: a clean picture and its drawn lines, redrawn.

Widths are in pixels and made for pictures of about 64.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustft.data.scenes.contexts import streaks
from robustft.data.scenes.recipes import COLOURS, RENDITIONS, SKETCHES

Plane = Float[Tensor, "batch height width"]
Image = Float[Tensor, "batch 3 height width"]

PALETTE = torch.tensor(list(COLOURS.values()))
INK = 0.07  # intensity of contours
DUOTONES = torch.tensor(  # dark, middle and light of a poster
    [
        [[0.10, 0.14, 0.34], [0.90, 0.36, 0.26], [0.99, 0.92, 0.76]],
        [[0.20, 0.10, 0.28], [0.94, 0.52, 0.50], [1.00, 0.88, 0.62]],
        [[0.06, 0.24, 0.26], [0.28, 0.66, 0.60], [0.96, 0.94, 0.80]],
        [[0.32, 0.10, 0.10], [0.93, 0.62, 0.22], [0.99, 0.95, 0.85]],
        [[0.12, 0.12, 0.14], [0.40, 0.56, 0.82], [0.95, 0.95, 0.90]],
    ]
)


class Canvas(NamedTuple):
    """What a style redraws.

    Attributes:
        image: the clean picture.
        ink: the strength of the object's drawn lines, 0...1.
        body: how much of each pixel the object covers.
        hue: the object's colour.
        smooth, grain, brush: random fields, per-pixel noise and numbers, see ``recipes.Scenes``.
    """

    image: Image
    ink: Plane
    body: Plane
    hue: Float[Tensor, "batch 3"]
    smooth: Float[Tensor, "batch 3 height width"]
    grain: Plane
    brush: Float[Tensor, "batch 4"]

    @property
    def tone(self) -> Plane:
        return luminance(self.image)

    def edges(self) -> Plane:
        """Where the context's tone changes, faintly."""
        tone = self.tone
        return (tone - blurred(tone[:, None], 5)[:, 0]).abs() * (1 - self.body)


def luminance(image: Image) -> Plane:
    return 0.3 * image[:, 0] + 0.59 * image[:, 1] + 0.11 * image[:, 2]


def blurred(image: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(image, width, stride=1, padding=width // 2, count_include_pad=False)


def paper(colour: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colour)[:, None, None]


def drawn(ground: Tensor, colour: Tensor, lines: Plane) -> Image:
    """Lines of a colour on a ground."""
    return ground + lines.clamp(0, 1)[:, None] * (colour - ground)


def hatching(like: Tensor, period: int) -> Tensor:
    down, right = (torch.arange(n) for n in like.shape[-2:])
    return ((down[:, None] + right) % period == 0).float()


# Sketches


def pencil(c: Canvas) -> Image:
    """Grey lines and hatched shadows on paper."""
    lines = (0.80 + 0.20 * c.grain.clamp(-2, 2)) * c.ink
    faint = (1.6 * c.edges()).clamp(max=0.3) + hatching(c.ink, 4) * (0.34 - 0.5 * c.tone).clamp(0, 0.24)
    ground = paper((0.95, 0.94, 0.90)) - 0.06 * (c.smooth[:, :1] - 0.5)
    return drawn(ground, paper((0.24, 0.24, 0.26)), lines.maximum(faint))


def ink(c: Canvas) -> Image:
    """Bold black lines, the darkest parts filled in."""
    lines = (1.7 * c.ink).maximum((3.2 * c.edges() - 0.12).clamp(0, 0.5))
    filled = ((0.30 - c.tone) * 6).clamp(0, 0.85) * (1 - hatching(c.ink, 3) * 0.8)
    return drawn(torch.ones(3, 1, 1) * 0.98, paper((0.05, 0.05, 0.08)), lines.maximum(filled * c.body))


def charcoal(c: Canvas) -> Image:
    """Broad smudged strokes and shadows."""
    rough = 1.7 * blurred(c.ink[:, None], 3)[:, 0] * (0.8 + 0.35 * c.grain.clamp(-1.5, 1.5))
    shade = (0.62 - blurred(c.tone[:, None], 5)[:, 0]).clamp(0, 0.45) * (0.8 + 0.15 * c.grain)
    ground = paper((0.90, 0.87, 0.80)) * (1 + 0.03 * c.grain[:, None])
    return drawn(ground, paper((0.13, 0.12, 0.12)), rough.maximum(shade).maximum(c.edges()))


def chalk(c: Canvas) -> Image:
    """Light lines on a blackboard that was wiped."""
    green = (c.brush[:, 0] < 0.5)[:, None, None, None]
    board = torch.where(green, paper((0.14, 0.26, 0.21)), paper((0.16, 0.17, 0.21)))
    board = board + 0.10 * (c.smooth[:, :1] - 0.4) + 0.012 * c.grain[:, None]
    dust = torch.where(c.grain > -0.7, 1.0, 0.45)
    lines = (1.25 * c.ink * dust).maximum((1.8 * c.edges()).clamp(max=0.35) * dust)
    lines = lines.maximum(0.16 * c.body * hatching(c.ink, 3))
    return drawn(board, paper((0.95, 0.95, 0.90)), lines)


def blueprint(c: Canvas) -> Image:
    """White lines on blue paper with a grid."""
    size = c.ink.shape[-1]
    ticks = (torch.arange(size) % max(size // 8, 2) == 0).float()
    ground = paper((0.10, 0.27, 0.58)) + 0.05 * (c.smooth[:, :1] - 0.5)
    lines = (1.3 * c.ink).maximum((1.8 * c.edges()).clamp(max=0.35)).maximum(0.13 * ticks[:, None].maximum(ticks))
    return drawn(ground, paper((0.94, 0.97, 1.0)), lines)


def marker(c: Canvas) -> Image:
    """Coloured outlines, and a wash of the colour that missed them a little."""
    hue = c.hue[..., None, None]
    colour = hue * (0.5 / (0.3 + luminance(hue)[:, None])).clamp(max=1)  # light ones darker, to be seen on white
    wash = drawn(torch.ones(3, 1, 1) * 0.985, hue, 0.25 * c.body.roll((2, 2), (1, 2)))
    lines = (1.5 * blurred(c.ink[:, None], 3)[:, 0]).maximum(c.ink)
    return drawn(wash, colour, lines.maximum((1.5 * c.edges()).clamp(max=0.3)))


# Renditions


def vivid(image: Image, strength: float) -> Image:
    grey = luminance(image)[:, None]
    return (grey + strength * (image - grey)).clamp(0, 1)


def moved(image: Image, right: Plane, down: Plane) -> Image:
    """The picture, each pixel taken from so many pixels away."""
    size = image.shape[-1]
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    grid = torch.stack(torch.broadcast_tensors(axis[None, None, :], axis[None, :, None]), dim=-1)
    shift = torch.stack([right, down], dim=-1) * (2 / size)
    return F.grid_sample(image, grid + shift, padding_mode="border", align_corners=False)


def coarse(c: Canvas) -> Plane:
    """Normal noise of a few pixels' width."""
    return F.interpolate(c.grain[:, None, ::4, ::4], size=c.grain.shape[1:], mode="bilinear")[:, 0]


def cartoon(c: Canvas) -> Image:
    """Few flat saturated colours, bold outlines."""
    flat = (vivid(blurred(c.image, 3), 1.7) * 4).round() / 4
    return drawn(flat, paper((INK, INK, INK)), 1.6 * c.ink)


def painting(c: Canvas) -> Image:
    """Displaced, streaky brush strokes on a warm ground."""
    image = moved(c.image, 1.6 * coarse(c), 3 * (c.smooth[:, 1] - 0.5))
    strokes = torch.where((c.brush[:, 0] < 0.5)[:, None, None], streaks(c.grain, 1, 7), streaks(c.grain, 7, 1))
    return (vivid(image, 1.2) * (1 + 0.11 * strokes)[:, None] * paper((1.05, 0.98, 0.86)) + 0.03).clamp(0, 1)


def watercolour(c: Canvas) -> Image:
    """Pale bleeding washes with darker rims; the paper's margin stays bare."""
    image = moved(c.image, 2.5 * (c.smooth[:, 0] - 0.5) + 0.5 * coarse(c), 2.5 * (c.smooth[:, 1] - 0.5))
    wash = blurred(image, 3)
    rims = (image - blurred(image, 5)).abs().amax(1)
    wash = 1 - 0.78 * (1 - wash) - 0.35 * rims[:, None]
    axis = (torch.arange(image.shape[-1]) + 0.5) * (2 / image.shape[-1]) - 1
    margin = axis.abs()[:, None].maximum(axis.abs()) + 0.22 * (c.smooth[:, 2] - 0.5)
    bare = ((margin - 0.86) * 14).clamp(0, 1)
    return drawn(wash, paper((0.98, 0.97, 0.94)), bare) * (1 + 0.02 * streaks(c.grain, 3, 3))[:, None]


def cells(c: Canvas, width: int, spread: float) -> Image:
    """Square cells of one colour each, a little brighter or darker."""
    size = c.image.shape[-1]
    means = F.avg_pool2d(c.image, width, ceil_mode=True)
    means = means * (1 + spread * c.grain[:, None, ::width, ::width])
    return F.interpolate(means, scale_factor=width, mode="nearest")[..., :size, :size]


def mosaic(c: Canvas) -> Image:
    """Glazed tiles with joints between them."""
    width = max(c.image.shape[-1] // 16, 2)
    place = torch.arange(c.image.shape[-1]) % width == 0
    return torch.where(place[:, None] | place, 0.72, 1.06) * vivid(cells(c, width, 0.06), 1.2)


def poster(c: Canvas) -> Image:
    """Three tones of a printed poster."""
    tone = blurred(c.tone[:, None], 3)[:, 0]
    tone = tone - tone.mean((1, 2), keepdim=True)
    inks = DUOTONES[(c.brush[:, 0] * len(DUOTONES)).long().clamp(max=len(DUOTONES) - 1)][..., None, None]
    image = torch.lerp(inks[:, 0], inks[:, 1], ((tone + 0.14) * 12).clamp(0, 1)[:, None])
    image = torch.lerp(image, inks[:, 2], ((tone - 0.10) * 12).clamp(0, 1)[:, None])
    return drawn(image, inks[:, 0], 1.2 * c.ink)


def comic(c: Canvas) -> Image:
    """Bright print with halftone dots in the shadows, black outlines."""
    size = c.image.shape[-1]
    down, right = torch.arange(size)[:, None], torch.arange(size)
    dots = 0.5 + 0.25 * (torch.cos(1.571 * (down + right)) + torch.cos(1.571 * (down - right)))
    flat = 0.25 + 0.75 * (vivid(blurred(c.image, 3), 1.5) * 3).round() / 3
    shade = ((0.85 - c.tone) * 1.3).clamp(0, 1) * (dots > 0.6)
    return drawn(flat * (1 - 0.45 * shade)[:, None], paper((INK, INK, INK)), 1.5 * c.ink)


def stitch(c: Canvas) -> Image:
    """Cross-stitch on cloth."""
    width = 3
    place = torch.arange(c.image.shape[-1]) % width
    cross = (place[:, None] == place) | (place[:, None] + place == width - 1)
    cloth = torch.where(cross, 0.0, 0.33).expand_as(c.ink)
    return drawn(cells(c, width, 0.05), paper((0.93, 0.90, 0.83)), cloth) * 1.02


def neon(c: Canvas) -> Image:
    """Glowing tubes before a dark wall."""
    hue = (c.hue / c.hue.amax(1, keepdim=True).clamp(min=0.3))[..., None, None]
    line = c.ink[:, None]
    glow = blurred(line, 3) + 0.8 * blurred(blurred(line, 5), 5)
    wall = 0.26 * c.image * paper((0.8, 0.75, 1.2)) + paper((0.03, 0.02, 0.06))
    return (wall + glow * hue * 0.9 + 0.45 * line).clamp(0, 1)


STYLE: dict[str, Callable[[Canvas], Image]] = {
    style.__name__: style
    for style in (
        pencil, ink, charcoal, chalk, blueprint, marker,
        cartoon, painting, watercolour, mosaic, poster, comic, stitch, neon,
    )
}  # fmt: skip
assert tuple(STYLE) == SKETCHES + RENDITIONS
