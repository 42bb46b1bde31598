"""The sixteen objects, as signed-distance functions.

Every shape is a function of object coordinates (x to the right, y UP, the object roughly fills
[-1, 1]^2) and five shape parameters in [0, 1], and returns its parts back to front. A part is a signed
distance (negative inside, in object units) and the paint it gets. Distances need not be exact: they are
used within a pixel or two of their zero set.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MAIN, ACCENT, DARK = 0, 1, 2  # paints: the object's colour, its second colour, near-black


class Part(NamedTuple):
    distance: Tensor  # [batch, height, width]
    paint: int


Parameters = list[Tensor]  # five, [batch, 1, 1] each
Shape = Callable[[Tensor, Tensor, Parameters], list[Part]]
Number = Tensor | float


def between(parameter: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * parameter


def circle(x: Tensor, y: Tensor, radius: Number) -> Tensor:
    return (x.square() + y.square()).sqrt() - radius


def ellipse(x: Tensor, y: Tensor, rx: Number, ry: Number) -> Tensor:
    """An approximate distance, right at the boundary and too small along the longer axis."""
    level = ((x / rx).square() + (y / ry).square()).sqrt() - 1
    return level * torch.minimum(torch.as_tensor(rx), torch.as_tensor(ry))


def box(x: Tensor, y: Tensor, half_width: Number, half_height: Number, rounding: float = 0.0) -> Tensor:
    dx = x.abs() - half_width + rounding
    dy = y.abs() - half_height + rounding
    outside = (dx.clamp(min=0).square() + dy.clamp(min=0).square()).sqrt()
    return outside + dx.maximum(dy).clamp(max=0) - rounding


def segment(x: Tensor, y: Tensor, x0: Number, y0: Number, x1: Number, y1: Number, radius: float) -> Tensor:
    """A line from (x0, y0) to (x1, y1) with round ends."""
    dx, dy = x1 - x0, y1 - y0
    t = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return circle(x - x0 - t * dx, y - y0 - t * dy, radius)


def trapezoid(x: Tensor, y: Tensor, bottom: Number, top: Number, half_height: Number) -> Tensor:
    """Symmetric about x = 0; half-widths at the bottom and at the top."""
    slope = (top - bottom) / (2 * half_height)
    side = (x.abs() - (bottom + top) / 2 - slope * y) / (1 + slope * slope) ** 0.5
    return side.maximum(y.abs() - half_height)


def rotated(x: Tensor, y: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    c, s = math.cos(angle), math.sin(angle)
    return c * x + s * y, c * y - s * x


def folded(x: Tensor, y: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fold the plane into one of `count` equal sectors, its axis along +x: for petals and star points."""
    sector = 2 * math.pi / count
    angle = torch.atan2(y, x)
    angle = angle - sector * (angle / sector).round()
    radius = (x.square() + y.square()).sqrt()
    return radius * angle.cos(), radius * angle.sin(), sector


def fish(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    height, tail, fin = between(p[0], 0.36, 0.56), between(p[1], 0.3, 0.55), between(p[2], 0.2, 0.4)
    tail_shape = (y.abs() - tail * (-(x + 0.35)) / 0.6).maximum(-0.97 - x + 0.2 * (tail - y.abs())) * 0.8
    fin_shape = ((x + 0.1).abs() - fin).maximum((y - height - between(p[3], 0.12, 0.3)).maximum(-y))
    body = ellipse(x - 0.18, y, 0.74, height)
    stripe = box(x - between(p[4], 0.0, 0.25), y, 0.1, 0.9).maximum(body + 0.05)
    return [
        Part(tail_shape.maximum(x), ACCENT),
        Part(fin_shape, ACCENT),
        Part(body, MAIN),
        Part(stripe, ACCENT),
        Part(circle(x - 0.6, y - 0.12, 0.09), DARK),
    ]


def boat(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    deck = between(p[0], -0.4, -0.15)
    depth, sail, lean = between(p[1], 0.4, 0.55), between(p[2], 0.95, 1.3), between(p[3], 0.45, 0.85)
    mid = deck - depth / 2
    hull = trapezoid(x, y - mid, between(p[4], 0.45, 0.7), 0.97, depth / 2)
    mast = box(x + 0.05, y - (deck + sail / 2), 0.06, sail / 2)
    up = (y - deck - 0.12) / (sail - 0.12)
    sail_shape = (x - 0.05 - (lean * (1 - up))).maximum(-(x - 0.05)).maximum(deck + 0.12 - y) * 0.85
    jib = (-x - 0.18 - 0.55 * (1 - up)).maximum(x + 0.18).maximum(deck + 0.12 - y) * 0.85
    return [Part(mast, DARK), Part(sail_shape, ACCENT), Part(jib, ACCENT), Part(hull, MAIN)]


def tree(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    trunk = box(x, y + 0.6, between(p[0], 0.1, 0.18), 0.4)
    spread, size = between(p[1], 0.22, 0.42), between(p[2], 0.36, 0.5)
    low, top = between(p[3], -0.05, 0.15), between(p[4], 0.45, 0.6)
    crown = circle(x, y - top, size)
    for side in (-1, 1):
        crown = crown.minimum(circle(x - side * spread, y - low, size * 0.95))
    return [Part(trunk, ACCENT), Part(crown, MAIN)]


def flower(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    petals = (between(p[0], 4.51, 7.49)).round()
    reach, width = between(p[1], 0.3, 0.38), between(p[2], 0.17, 0.25)
    cy = 0.3
    stem = segment(x, y, between(p[3], -0.25, 0.25), -0.97, 0.0, cy, 0.07)
    leaf = ellipse(*rotated(x - 0.28, y + 0.55, 0.6), 0.26, 0.11)
    fx, fy, _ = folded(x, y - cy, petals)
    petal = ellipse(fx - reach, fy, 0.3, width)
    return [
        Part(stem, DARK),
        Part(leaf, DARK),
        Part(petal, MAIN),
        Part(circle(x, y - cy, between(p[4], 0.15, 0.24)), ACCENT),
    ]


def umbrella(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    height, base = between(p[0], 0.65, 0.9), between(p[1], -0.05, 0.1)
    dome = ellipse(x, y - base, 0.95, height).maximum(base - y)
    lobes = between(p[2], 0.3, 0.34)
    for centre in (-0.64, 0.0, 0.64):
        dome = dome.maximum(-ellipse(x - centre, y - base, lobes, 0.17))
    rib = ellipse(x, y - base, between(p[3], 0.24, 0.4), height).maximum(base - y).maximum(dome + 0.03)
    bottom = between(p[4], -0.8, -0.65)
    shaft = box(x, y - (base + bottom) / 2, 0.065, (base - bottom) / 2 + 0.1)
    hook = (circle(x - 0.17, y - bottom, 0.17).abs() - 0.065).maximum(y - bottom)
    return [Part(shaft.minimum(hook), DARK), Part(dome, MAIN), Part(rib, ACCENT)]


def star(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    points = between(p[0], 4.51, 6.49).round()
    inner = between(p[1], 0.38, 0.52)
    turned = rotated(x, y, math.pi / 2)
    fx, fy, sector = folded(*turned, points)
    half = sector / 2
    ix, iy = inner * half.cos(), inner * half.sin()
    outer = between(p[2], 0.9, 1.0)
    distance = (iy * (fx - outer) + (outer - ix) * fy.abs()) / ((outer - ix) ** 2 + iy**2).sqrt()
    centre = circle(x, y, between(p[3], 0.12, 0.3))
    return [Part(distance, MAIN), Part(centre, ACCENT)]


def house(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    width, eaves = between(p[0], 0.6, 0.8), between(p[1], -0.05, 0.2)
    roof = between(p[2], 0.6, 0.8)
    wall = box(x, y - (eaves - 0.9) / 2, width, (eaves + 0.9) / 2)
    over = width + 0.17
    slope = roof / over
    gable = ((x.abs() * slope + y - eaves - roof) / (1 + slope * slope).sqrt()).maximum(eaves - y)
    chimney = box(x - width * 0.6, y - eaves - roof * 0.5, 0.11, roof * 0.42)
    door = box(x - between(p[3], -0.4, 0.0), y + 0.6, 0.15, 0.3)
    window = box(x - between(p[4], 0.3, 0.42), y + 0.35, 0.15, 0.15)
    return [
        Part(chimney, DARK),
        Part(wall, MAIN),
        Part(gable, ACCENT),
        Part(door, DARK),
        Part(window, ACCENT),
    ]


def car(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    height, cabin = between(p[0], 0.2, 0.28), between(p[1], 0.36, 0.5)
    shift = between(p[2], -0.2, 0.1)
    body = box(x, y + 0.12, 0.97, height, 0.12)
    roof = trapezoid(x - shift, y - height - cabin / 2 + 0.14, between(p[3], 0.62, 0.72), 0.4, cabin / 2 + 0.02)
    pane = trapezoid(x - shift, y - height - cabin / 2 + 0.14, 0.48, 0.3, cabin / 2 - 0.1)
    pane = pane.maximum(0.05 - (x - shift).abs())
    radius = between(p[4], 0.2, 0.27)
    wheels = circle(x.abs() - 0.55, y + 0.14 + height, radius)
    hubs = circle(x.abs() - 0.55, y + 0.14 + height, radius * 0.4)
    return [Part(roof, MAIN), Part(body, MAIN), Part(pane, ACCENT), Part(wheels, DARK), Part(hubs, ACCENT)]


def cup(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    half, top = between(p[0], 0.6, 0.8), between(p[1], 0.55, 0.66)
    bottom = top * between(p[2], 0.65, 0.95)
    bx = x + 0.25
    body = trapezoid(bx, y, bottom, top, half)
    size = between(p[3], 0.26, 0.36)
    handle = (ellipse(bx - (bottom + top) / 2 - 0.1, y - 0.05, size, size * 1.1)).abs() - 0.09
    band = (y - between(p[4], -0.1, 0.2)).abs() - 0.13
    rim = ellipse(bx, y - half, top, 0.14)
    return [Part(handle, MAIN), Part(body, MAIN), Part(band.maximum(body + 0.04), ACCENT), Part(rim, DARK)]


def bottle(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    width, shoulder = between(p[0], 0.3, 0.42), between(p[1], 0.0, 0.25)
    neck = between(p[2], 0.1, 0.15)
    body = box(x, y - (shoulder - 0.97) / 2, width, (shoulder + 0.97) / 2, 0.1)
    slope = trapezoid(x, y - shoulder - 0.08, width * 0.95, neck, 0.2)
    throat = box(x, y - 0.55, neck, 0.4)
    cap = box(x, y - 0.88, neck + 0.05, between(p[3], 0.08, 0.13))
    label = box(x, y + 0.4, width, between(p[4], 0.18, 0.3)).maximum(body + 0.02)
    return [Part(body.minimum(slope).minimum(throat), MAIN), Part(label, ACCENT), Part(cap, DARK)]


def heart(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    lobe, spread = between(p[0], 0.46, 0.54), between(p[1], 0.38, 0.46)
    tip, height = between(p[2], -0.95, -0.75), between(p[3], 0.2, 0.35)
    lobes = circle(x.abs() - spread, y - height, lobe)
    reach = spread + lobe * 0.9
    run = height - tip - 0.12
    wedge = ((x.abs() * run - (y - tip) * reach) / (run**2 + reach**2).sqrt()).maximum(y - height + 0.12)
    gleam = ellipse(*rotated(x + spread, y - height - 0.1, -0.7), 0.08 + 0.1 * p[4], 0.08)
    return [Part(lobes.minimum(wedge), MAIN), Part(gleam, ACCENT)]


def mushroom(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    height, base = between(p[0], 0.65, 0.9), between(p[1], -0.1, 0.05)
    stalk = trapezoid(x, y + 0.45, between(p[2], 0.26, 0.38), between(p[3], 0.18, 0.26), 0.52)
    cap = ellipse(x, y - base, 0.93, height).maximum(base - y)
    size = between(p[4], 0.11, 0.17)
    spots = circle(x.abs() - 0.48, y - base - 0.24, size).minimum(circle(x, y - base - height * 0.62, size))
    return [Part(stalk, ACCENT), Part(cap, MAIN), Part(spots, ACCENT)]


def butterfly(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    upper, lower = between(p[0], 0.4, 0.5), between(p[1], 0.28, 0.4)
    tilt = between(p[2], 0.3, 0.4)
    side = x.abs()
    top = ellipse(side - 0.5, y - tilt, 0.46, upper)
    bottom = ellipse(side - 0.42, y + 0.42, between(p[3], 0.32, 0.4), lower)
    spots = circle(side - 0.56, y - tilt, between(p[4], 0.12, 0.22))
    body = ellipse(x, y, 0.1, 0.72)
    feelers = segment(side, y, 0.0, 0.6, 0.3, 0.95, 0.045)
    return [Part(feelers, DARK), Part(bottom, ACCENT), Part(top, MAIN), Part(spots, ACCENT), Part(body, DARK)]


def arrow(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    width, head = between(p[0], 0.14, 0.24), between(p[1], 0.55, 0.8)
    neck = between(p[2], 0.05, 0.3)
    shaft = box(x - (neck - 0.95) / 2, y, (neck + 0.95) / 2, width)
    run = 0.97 - neck
    tip = ((y.abs() * run - (0.97 - x) * head) / (run**2 + head**2).sqrt()).maximum(neck - x)
    tail = box(x + 0.8, y, between(p[3], 0.06, 0.14), width + between(p[4], 0.05, 0.25))
    return [Part(shaft, MAIN), Part(tail, ACCENT), Part(tip, MAIN)]


def lamp(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    top, bottom = between(p[0], 0.2, 0.38), between(p[1], 0.62, 0.8)
    height = between(p[2], 0.3, 0.4)
    shade = trapezoid(x, y - 0.95 + height, bottom, top, height)
    trim = (y - 0.95 + 2 * height - 0.1).abs() - 0.08
    stand = box(x, y + 0.3, between(p[3], 0.06, 0.1), 0.6)
    foot = ellipse(x, y + 0.92, between(p[4], 0.4, 0.55), 0.24).maximum(-0.95 - y)
    return [Part(stand, DARK), Part(foot, DARK), Part(shade, MAIN), Part(trim.maximum(shade + 0.02), ACCENT)]


def key(x: Tensor, y: Tensor, p: Parameters) -> list[Part]:
    radius, hole = between(p[0], 0.36, 0.46), between(p[1], 0.14, 0.22)
    ring = circle(x + 0.55, y, radius).maximum(-circle(x + 0.55, y, hole))
    shaft = box(x - 0.4, y, 0.57, between(p[2], 0.09, 0.13))
    teeth = box(x - 0.85, y + 0.22, 0.1, between(p[3], 0.18, 0.26))
    teeth = teeth.minimum(box(x - 0.5, y + 0.2, 0.1, between(p[4], 0.14, 0.22)))
    collar = box(x + 0.1, y, 0.08, 0.24)
    return [Part(ring.minimum(shaft).minimum(teeth), MAIN), Part(collar, ACCENT)]


SHAPES: dict[str, Shape] = {
    shape.__name__: shape
    for shape in (
        fish, boat, tree, flower, umbrella, star, house, car,
        cup, bottle, heart, mushroom, butterfly, arrow, lamp, key,
    )
}  # fmt: skip
