"""Scenes to pixels: context, clutter, the object, something in front of it, style, camera."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from robustft.data.scenes.contexts import PAINTERS
from robustft.data.scenes.recipes import CLASSES, COLOURS, CONTEXTS, STYLES, Scenes
from robustft.data.scenes.shapes import ACCENT, DARK, MAIN, SHAPES, Part, box, circle, trapezoid

Plane = Float[Tensor, "batch height width"]
Image = Float[Tensor, "batch 3 height width"]

PALETTE = torch.tensor(list(COLOURS.values()))
INK = 0.07  # intensity of contours
CARTOON = STYLES.index("cartoon")


def render(
    scenes: Scenes, size: int
) -> tuple[UInt8[Tensor, "batch 3 height width"], Bool[Tensor, "batch height width"]]:
    """Images, and where the object is seen in them."""
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    x, y = axis[None, None, :], -axis[None, :, None]  # y points up
    smooth = F.interpolate(scenes.fields, size=(size, size), mode="bicubic", align_corners=True).clamp(0, 1)

    image = contexts(scenes, x, y, smooth)
    image = clutter(image, scenes, x, y)
    image, ink, mask = objects(image, scenes, x, y, size)
    bar = bars(scenes, x, y, size)
    image = over(image, PALETTE[twelfth(scenes.bar[:, 3])], bar)
    ink = torch.where(bar > 0.5, 0.0, ink).maximum(4 * bar * (1 - bar))
    image = restyle(image, ink, scenes, smooth)
    image = camera(image, scenes)
    return (image * 255).round().to(torch.uint8), mask & (bar < 0.5)


def over(image: Image, colour: Float[Tensor, "batch 3"], alpha: Plane) -> Image:
    return image + alpha[:, None] * (colour[:, :, None, None] - image)


def plane(values: Shaped[Tensor, " batch"]) -> Shaped[Tensor, "batch 1 1"]:
    return values[:, None, None]


def twelfth(uniform: Tensor) -> Tensor:
    return (uniform * len(COLOURS)).long().clamp(max=len(COLOURS) - 1)


def luminance(image: Image) -> Plane:
    return 0.3 * image[:, 0] + 0.59 * image[:, 1] + 0.11 * image[:, 2]


def contexts(scenes: Scenes, x: Tensor, y: Tensor, smooth: Tensor) -> Image:
    """The backgrounds."""
    image = torch.empty(len(scenes.label), 3, x.shape[2], x.shape[2])
    for number, context in enumerate(CONTEXTS):
        rows = (scenes.context == number).nonzero()[:, 0]
        if len(rows):
            texture = [plane(column) for column in scenes.texture[rows].unbind(1)]
            image[rows] = PAINTERS[context](x, y, texture, smooth[rows], scenes.grain[rows, 3])
    image = image.clamp(0, 1)
    mean = image.mean((2, 3), keepdim=True)
    return mean + 0.55 * (image - mean)  # at full contrast this small CLIP does not learn the objects


def clutter(image: Image, scenes: Scenes, x: Tensor, y: Tensor) -> Image:
    """Small plain shapes without contours, behind the object."""
    pixels = image.shape[-1] / 2
    for item in scenes.clutter.unbind(1):
        rows = item[:, 6].nonzero()[:, 0]
        kind, at_x, at_y, size, angle, colour, _ = item[rows].unbind(1)
        px, py = turned(x - plane(2 * at_x - 1), y - plane(2 * at_y - 1), 6.2832 * angle)
        radius = plane(0.10 + 0.14 * size)
        disc, rectangle = circle(px, py, radius), box(px, py, radius, radius * 0.6)
        triangle = trapezoid(px, py, radius, radius * 0.1, radius * 0.8)
        distance = torch.where(plane(kind) < 0.67, rectangle, triangle)
        distance = torch.where(plane(kind) < 0.34, disc, distance)
        image[rows] = over(image[rows], PALETTE[twelfth(colour)], 0.75 * coverage(distance * pixels))
    return image


def turned(x: Tensor, y: Tensor, angle: Float[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
    """Coordinates in a frame that is turned counter-clockwise by `angle` (radians)."""
    cos, sin = plane(angle.cos()), plane(angle.sin())
    return cos * x + sin * y, cos * y - sin * x


def coverage(distance: Plane) -> Plane:
    """How much of a pixel a shape covers, from its signed distance in pixels."""
    return (0.5 - distance).clamp(0, 1)


def objects(
    image: Image, scenes: Scenes, x: Tensor, y: Tensor, size: int
) -> tuple[Image, Plane, Bool[Tensor, "batch height width"]]:
    """The image with its object; the strength of drawn lines; and the silhouette."""
    image, ink = image.clone(), torch.zeros_like(image[:, 0])
    mask = torch.zeros_like(ink, dtype=torch.bool)
    for number, name in enumerate(CLASSES):
        rows = (scenes.label == number).nonzero()[:, 0]
        if not len(rows):
            continue
        px, py = turned(x - plane(scenes.centre[rows, 0]), y - plane(scenes.centre[rows, 1]), scenes.angle[rows])
        stretch = (scenes.aspect[rows] / 2).exp()
        scale = scenes.scale[rows]
        flip = torch.where(scenes.mirrored[rows], -1.0, 1.0)
        px, py = px / plane(scale * stretch * flip), py / plane(scale / stretch)
        parts = SHAPES[name](px, py, [plane(column) for column in scenes.shape[rows].unbind(1)])
        unit = plane(scale) * (size / 2)  # pixels per object unit
        drawn, lines, mask[rows] = one_class(image[rows], scenes, rows, parts, px, py, unit)
        opacity = plane(scenes.opacity[rows])
        image[rows] = torch.lerp(image[rows], drawn, opacity[:, None])
        ink[rows] = lines * opacity
    return image, ink, mask


def one_class(
    image: Image, scenes: Scenes, rows: Tensor, parts: list[Part], px: Plane, py: Plane, unit: Tensor
) -> tuple[Image, Plane, Bool[Tensor, "batch height width"]]:
    """`objects` for the images `rows`, which show the same class; `unit` is pixels per object unit."""
    cartoon, contour = plane(scenes.style[rows] == CARTOON), plane(scenes.contour[rows])
    width = torch.where(cartoon, 1.7, 1.2) * contour
    silhouette = torch.stack([part.distance for part in parts]).amin(0) * unit

    shade = 0.22 * (plane(scenes.light[rows, 0]) * px + plane(scenes.light[rows, 1]) * py)
    shade = 1 + torch.where(cartoon, 0.15 * shade.sign(), shade).clamp(-0.35, 0.35)
    shadow = 0.3 * (1 - silhouette / 4).clamp(0, 1)
    image = over(image, torch.zeros(len(rows), 3), torch.where(cartoon, 0.0, shadow))
    image = over(image, torch.full((len(rows), 3), INK), coverage(silhouette - width) * contour)

    paints = {MAIN: PALETTE[scenes.colour[rows]], ACCENT: PALETTE[scenes.accent[rows]]}
    paints[DARK] = torch.tensor([0.2, 0.18, 0.17]).expand(len(rows), 3)
    ink = coverage(silhouette.abs() - 0.7)
    for part in parts:
        distance = part.distance * unit
        alpha = coverage(distance)
        colour = paints[part.paint][:, :, None, None] * shade[:, None]
        image = image + alpha[:, None] * (colour - image)
        line = coverage(distance.abs() - 0.2)
        image = over(image, torch.full((len(rows), 3), INK), 0.6 * line * contour)
        ink = torch.where(distance < -0.5, 0.0, ink).maximum(0.8 * line)
        if part.paint == DARK:
            ink = ink.maximum(0.7 * alpha)
    return image, ink, silhouette < 0


def bars(scenes: Scenes, x: Tensor, y: Tensor, size: int) -> Plane:
    """Coverage of the bars that hide a part of some objects."""
    shown, offset, angle, _ = scenes.bar.unbind(1)
    px, py = turned(x - plane(scenes.centre[:, 0]), y - plane(scenes.centre[:, 1]), 3.1416 * angle)
    distance = (py - plane((1.2 * offset - 0.6) * scenes.scale)).abs() - 0.11
    return coverage(distance * (size / 2)) * plane(shown)


def restyle(image: Image, ink: Plane, scenes: Scenes, smooth: Tensor) -> Image:
    """Photos stay; other images are redrawn in their style."""
    image = image.clamp(0, 1)
    for number, style in enumerate(STYLES):
        rows = (scenes.style == number).nonzero()[:, 0]
        if style != "photo" and len(rows):
            image[rows] = RESTYLE[style](image[rows], ink[rows], smooth[rows], scenes.grain[rows, 3])
    return image


def sketch(image: Image, ink: Plane, smooth: Tensor, grain: Plane) -> Image:
    """Pencil on paper: the object's lines, tone by hatching, the context's edges faintly."""
    tone = luminance(image)
    size = image.shape[-1]
    ramp = torch.arange(size)
    hatching = ((ramp[None, :, None] + ramp[None, None, :]) % 4 == 0).float()
    edges = (tone - box_blur(tone[:, None], 5)[:, 0]).abs()
    pencil = (0.85 + 0.15 * grain.clamp(-2, 2)) * ink
    faint = (1.2 * edges).clamp(max=0.25) + hatching * (0.3 - 0.5 * tone).clamp(0, 0.2)
    lines = pencil.maximum(faint)
    paper = torch.tensor([0.95, 0.94, 0.90])[:, None, None] - 0.06 * (smooth[:, :1] - 0.5)
    return paper * (1 - 0.9 * lines[:, None])


def cartoon(image: Image, ink: Plane, smooth: Tensor, grain: Plane) -> Image:
    """Few flat saturated colours."""
    flat = box_blur(image, 3)
    image = torch.where(ink[:, None] > 0.05, image, flat)
    grey = luminance(image)[:, None]
    vivid = (grey + 1.7 * (image - grey)).clamp(0, 1)
    return ((vivid * 4).round() / 4).clamp(INK, 1)


def painting(image: Image, ink: Plane, smooth: Tensor, grain: Plane) -> Image:
    """Displaced, streaky brush strokes on a warm ground."""
    size = image.shape[-1]
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    grid = torch.stack(torch.broadcast_tensors(axis[None, None, :], axis[None, :, None]), dim=-1)
    coarse = F.interpolate(grain[:, None, ::4, ::4], size=(size, size), mode="bilinear")[:, 0]
    shift = torch.stack([coarse, smooth[:, 1] - 0.5], dim=-1) * (1.6 * 2 / size)
    moved = F.grid_sample(image, grid + shift, padding_mode="border", align_corners=False)
    strokes = F.avg_pool2d(grain[:, None], (1, 7), 1, (0, 3), count_include_pad=False)
    warm = torch.tensor([1.04, 0.98, 0.86])[:, None, None]
    return (moved * (1 + 0.28 * strokes) * warm + 0.05).clamp(0, 1)


def mosaic(image: Image, ink: Plane, smooth: Tensor, grain: Plane) -> Image:
    """Square tiles, each of one colour and a little brighter or darker."""
    size = image.shape[-1]
    tile = size // 16
    tiles = F.avg_pool2d(image, tile, ceil_mode=True)
    tiles = tiles * (1 + 0.06 * grain[:, None, ::tile, ::tile])
    return F.interpolate(tiles, scale_factor=tile, mode="nearest")[..., :size, :size].clamp(0, 1)


def negative(image: Image, ink: Plane, smooth: Tensor, grain: Plane) -> Image:
    return 1 - image


RESTYLE: dict[str, Callable[..., Image]] = {
    style.__name__: style for style in (sketch, cartoon, painting, mosaic, negative)
}


def box_blur(image: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(image, width, stride=1, padding=width // 2, count_include_pad=False)


def camera(image: Image, scenes: Scenes) -> Image:
    """Contrast, blur and sensor noise."""
    mean = image.mean((1, 2, 3), keepdim=True)
    image = mean + scenes.contrast[:, None, None, None] * (image - mean)
    rows = scenes.blur.nonzero()[:, 0]
    soft = box_blur(box_blur(image[rows], 3), 3)
    image[rows] += scenes.blur[rows, None, None, None] * (soft - image[rows])
    return (image + scenes.noise * scenes.grain[:, :3]).clamp(0, 1)
