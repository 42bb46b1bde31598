"""Scenes to pixels: context, clutter, the object, mist, something in front of it, style, camera."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from robustft.data.scenes.contexts import PAINTERS
from robustft.data.scenes.recipes import CLASSES, COLOURS, CONTEXTS, STYLES, Scenes
from robustft.data.scenes.shapes import ACCENT, DARK, MAIN, SHAPES, Part, box, circle, ellipse, trapezoid
from robustft.data.scenes.styles import INK, PALETTE, STYLE, Canvas, blurred

Plane = Float[Tensor, "batch height width"]
Image = Float[Tensor, "batch 3 height width"]

OUTLINE = 1.1  # pixels
CONTRAST = 0.72  # of the contexts: at full contrast this small CLIP learns the objects late


def render(
    scenes: Scenes, size: int
) -> tuple[UInt8[Tensor, "batch 3 height width"], Bool[Tensor, "batch height width"]]:
    """Images, and where the object is seen in them, its outline included."""
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    x, y = axis[None, None, :], -axis[None, :, None]  # y points up
    smooth = F.interpolate(scenes.fields, size=(size, size), mode="bicubic", align_corners=True).clamp(0, 1)

    image = contexts(scenes, x, y, smooth)
    haze = 0.8 * image.mean((2, 3)) + 0.16
    image = clutter(image, scenes, x, y)
    image, ink, silhouette = objects(image, scenes, x, y)
    veil = mist(scenes, x, y, smooth)
    image, ink = over(image, haze, veil), ink * (1 - veil)
    image, front = things_in_front(image, scenes, x, y)
    ink = torch.where(front > 0.5, 0.0, ink).maximum(4 * front * (1 - front))
    body = coverage(silhouette) * (1 - veil) * (1 - front)
    image = restyle(image, ink, body, scenes, smooth)
    image = camera(image, scenes, x, y)
    outline = torch.where(scenes.contour, OUTLINE + 0.5, 0.0)  # it is drawn around the object and belongs to it
    return (image * 255).round().to(torch.uint8), (silhouette < plane(outline)) & (front < 0.5)


def over(image: Image, colour: Float[Tensor, "batch 3"], alpha: Plane) -> Image:
    return image + alpha[:, None] * (colour[:, :, None, None] - image)


def plane(values: Shaped[Tensor, " batch"]) -> Shaped[Tensor, "batch 1 1"]:
    return values[:, None, None]


def twelfth(uniform: Tensor) -> Tensor:
    return (uniform * len(COLOURS)).long().clamp(max=len(COLOURS) - 1)


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
    return mean + CONTRAST * (image - mean)


def clutter(image: Image, scenes: Scenes, x: Tensor, y: Tensor) -> Image:
    """Small plain shapes without contours, behind the object."""
    pixels = image.shape[-1] / 2
    for item in scenes.clutter.unbind(1):
        rows = item[:, 6].nonzero()[:, 0]
        kind, at_x, at_y, size, angle, colour, _ = item[rows].unbind(1)
        px, py = turned(x - plane(2 * at_x - 1), y - plane(2 * at_y - 1), 6.2832 * angle)
        radius = plane(0.09 + 0.12 * size)
        disc, rectangle = circle(px, py, radius), box(px, py, radius, radius * 0.6)
        triangle = trapezoid(px, py, radius, radius * 0.1, radius * 0.8)
        distance = torch.where(plane(kind) < 0.67, rectangle, triangle)
        distance = torch.where(plane(kind) < 0.34, disc, distance)
        shade = (1 - 0.25 * (px + py) / radius)[:, None].clamp(0.6, 1.3)
        alpha = 0.85 * coverage(distance * pixels)[:, None]
        image[rows] += alpha * (PALETTE[twelfth(colour)][:, :, None, None] * shade - image[rows])
    return image


def turned(x: Tensor, y: Tensor, angle: Float[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
    """Coordinates in a frame that is turned counter-clockwise by `angle` (radians)."""
    cos, sin = plane(angle.cos()), plane(angle.sin())
    return cos * x + sin * y, cos * y - sin * x


def coverage(distance: Plane) -> Plane:
    """How much of a pixel a shape covers, from its signed distance in pixels."""
    return (0.5 - distance).clamp(0, 1)


def objects(image: Image, scenes: Scenes, x: Tensor, y: Tensor) -> tuple[Image, Plane, Plane]:
    """The image with its object; the strength of drawn lines; signed distances (pixels) from the silhouette."""
    image, ink = image.clone(), torch.zeros_like(image[:, 0])
    silhouette = torch.zeros_like(ink)
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
        unit = plane(scale) * (image.shape[-1] / 2)  # pixels per object unit
        image[rows], ink[rows], silhouette[rows] = one_class(image[rows], scenes, rows, parts, px, py, unit)
    return image, ink, silhouette


def one_class(
    image: Image, scenes: Scenes, rows: Tensor, parts: list[Part], px: Plane, py: Plane, unit: Tensor
) -> tuple[Image, Plane, Plane]:
    """`objects` for the images `rows`, which show the same class; `unit` is pixels per object unit."""
    contour, light = plane(scenes.contour[rows]), scenes.light[rows]
    silhouette = torch.stack([part.distance for part in parts]).amin(0) * unit
    black = torch.full((len(rows), 3), INK)

    fallen = torch.where(plane(light[:, 0]) < 0, silhouette.roll((3, 2), (1, 2)), silhouette.roll((3, -2), (1, 2)))
    image = over(image, black, 0.42 * (0.6 - fallen / 5).clamp(0, 1))
    image = over(image, black, coverage(silhouette - OUTLINE) * contour)

    paints = {MAIN: PALETTE[scenes.colour[rows]], ACCENT: PALETTE[scenes.accent[rows]]}
    paints[DARK] = torch.tensor([0.22, 0.19, 0.18]).expand(len(rows), 3)
    surface = {paint: colour[:, :, None, None] for paint, colour in paints.items()}
    surface[MAIN] = torch.lerp(surface[MAIN], surface[ACCENT], 0.4 * pattern(scenes.pattern[rows], px, py)[:, None])
    ink = coverage(silhouette.abs() - 0.7)
    height = torch.zeros_like(silhouette)
    for part in parts:
        distance = part.distance * unit
        alpha = coverage(distance)
        image = image + alpha[:, None] * (surface[part.paint] - image)
        rim = (-distance / (0.25 * unit)).clamp(0, 1)
        height = torch.lerp(height, (rim * (2 - rim)).sqrt(), alpha)
        line = coverage(distance.abs() - 0.2)
        image = over(image, black, 0.6 * line * contour)
        ink = torch.where(distance < -0.5, 0.0, ink).maximum(0.8 * line)
        if part.paint == DARK:
            ink = ink.maximum(0.7 * alpha)
    down, right = torch.gradient(height, dim=(1, 2))
    relief = plane(light[:, 1]) * down - plane(light[:, 0]) * right  # how much the surface faces the light
    inside = coverage(silhouette)
    image = image * (1 + (0.9 * relief).clamp(-0.4, 0.3) * inside)[:, None]
    image = image + (0.8 * (relief - 0.12)).clamp(0, 0.3)[:, None] * inside[:, None]
    return image, ink, silhouette


def pattern(uniform: Float[Tensor, "batch 3"], px: Plane, py: Plane) -> Plane:
    """What is printed on the object's surface, 0...1: nothing (half of the time), stripes, dots, or a gradient."""
    kind, width, way = (plane(column) for column in uniform.unbind(1))
    along = torch.where(way < 0.5, px, py)
    waves = 9 + 7 * width
    stripes = (3 * torch.sin(waves * along)).clamp(0, 1)
    dots = (6 * (torch.sin(waves * px) * torch.sin(waves * py) - 0.35)).clamp(0, 1)
    gradient = (0.5 + 0.6 * along).clamp(0, 1)
    printed = torch.where(kind < 0.84, torch.where(kind < 0.67, stripes, dots), gradient)
    return torch.where(kind < 0.5, 0.0, printed)


def mist(scenes: Scenes, x: Tensor, y: Tensor, smooth: Tensor) -> Plane:
    """Density of the banks of mist that hide some objects."""
    radius = circle(x - plane(scenes.centre[:, 0]), y - plane(scenes.centre[:, 1]), 0.0)
    inside = 1.35 - radius / plane(scenes.scale) + 0.9 * (smooth[:, 2] - 0.5)
    return plane(scenes.veil) * (1.6 * inside).clamp(0, 1)


def things_in_front(image: Image, scenes: Scenes, x: Tensor, y: Tensor) -> tuple[Image, Plane]:
    """A pole, a ball or a leaf before some objects, and where it is."""
    shown, kind, offset, angle, size, colour = (plane(column) for column in scenes.front.unbind(1))
    px, py = turned(x - plane(scenes.centre[:, 0]), y - plane(scenes.centre[:, 1]), 6.2832 * scenes.front[:, 3])
    py = py - (1.3 * offset - 0.65) * plane(scenes.scale)
    thickness = 0.07 + 0.06 * size
    ball, leaf = 2.6 * thickness, 2.2 * thickness
    half = torch.where(kind < 0.4, thickness, torch.where(kind < 0.7, ball, leaf))
    distance = torch.where(kind < 0.7, circle(px, py, ball), ellipse(px, py, 3 * leaf, leaf))
    distance = torch.where(kind < 0.4, py.abs() - thickness, distance)
    alpha = coverage(distance * (image.shape[-1] / 2)) * shown
    round_side = 1.05 + 0.28 * py / half - 0.35 * (py / half).square().clamp(max=1)
    paint = PALETTE[twelfth(scenes.front[:, 5])][:, :, None, None] * round_side[:, None].clamp(0.4, 1.3)
    return image + alpha[:, None] * (paint - image), alpha


def restyle(image: Image, ink: Plane, body: Plane, scenes: Scenes, smooth: Tensor) -> Image:
    """Photos stay; other images are redrawn in their style."""
    image = image.clamp(0, 1)
    hue = PALETTE[scenes.colour]
    for number, style in enumerate(STYLES):
        rows = (scenes.style == number).nonzero()[:, 0]
        if style != "photo" and len(rows):
            planes = (image[rows], ink[rows], body[rows], hue[rows], smooth[rows], scenes.grain[rows, 3])
            image[rows] = STYLE[style](Canvas(*planes, scenes.brush[rows])).clamp(0, 1)
    return image


def camera(image: Image, scenes: Scenes, x: Tensor, y: Tensor) -> Image:
    """Contrast, colour of the light, vignetting, blur and sensor noise; of what is no photo, less of all."""
    photo = (scenes.style == 0).float()[:, None, None, None]
    mean = image.mean((1, 2, 3), keepdim=True)
    image = mean + scenes.contrast[:, None, None, None] * (image - mean)
    image = image * (1 + photo * (scenes.cast[:, :, None, None] - 1))
    image = image * (1 - 0.10 * photo * (x.square() + y.square())[:, None])
    rows = scenes.blur.nonzero()[:, 0]
    soft = blurred(blurred(image[rows], 3), 3)
    image[rows] += scenes.blur[rows, None, None, None] * (soft - image[rows])
    return (image + scenes.noise * (0.5 + 0.5 * photo) * scenes.grain[:, :3]).clamp(0, 1)
