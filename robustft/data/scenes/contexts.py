"""The eight backgrounds. Each fills the image from coordinates in [-1, 1] (y up), six random numbers in 0...1,
three smooth random fields in 0...1 and per-pixel normal noise."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Plane = Float[Tensor, "batch height width"]
Image = Float[Tensor, "batch 3 height width"]
Colour = tuple[float, float, float]


def mix(low: Colour, high: Colour, share: Plane) -> Image:
    a, b = torch.tensor(low)[:, None, None], torch.tensor(high)[:, None, None]
    return a + share.clamp(0, 1)[:, None] * (b - a)


def laid(image: Image, colour: Colour, share: Plane) -> Image:
    """A colour laid over the image, where and as densely as ``share`` says."""
    return image + share.clamp(0, 1)[:, None] * (torch.tensor(colour)[:, None, None] - image)


def below(y: Tensor, height: Tensor, soft: float = 40.0) -> Tensor:
    """1 below a line, 0 above it, smooth within a pixel or two."""
    return ((height - y) * soft + 0.5).clamp(0, 1)


def streaks(grain: Tensor, rows: int, columns: int) -> Tensor:
    """The grain smeared over so many rows and columns (odd), its spread about as before."""
    smeared = F.avg_pool2d(grain[:, None], (rows, columns), 1, (rows // 2, columns // 2), count_include_pad=False)
    return smeared[:, 0] * (rows * columns) ** 0.5


def clouds(smooth: Tensor, grain: Tensor) -> Tensor:
    """Billowing density, about 0...1: three octaves."""
    fine = F.interpolate(grain[:, None, ::8, ::8], size=grain.shape[1:], mode="bicubic", align_corners=True)[:, 0]
    return 0.65 * smooth[:, 0] + 0.45 * smooth[:, 1] - 0.05 + 0.07 * fine


def water(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    horizon = 0.45 + 0.5 * t[0]
    depth = (horizon - y).clamp(min=0) + 0.10
    phase = (5 + 3 * t[1]) / depth.sqrt() + 1.6 * torch.sin(x * (2 + 3 * t[2]) / depth.sqrt() + 6 * t[3])
    waves = torch.sin(2.2 * phase + 4 * smooth[:, 0]) * (2 * depth).clamp(max=1)
    sea = mix((0.03, 0.27, 0.50), (0.38, 0.74, 0.84), 0.42 + 0.30 * waves + 0.3 * (t[4] - 0.5))
    sea = laid(sea, (0.95, 0.99, 1.0), 2.5 * (waves - 0.72))
    sky = mix((0.86, 0.93, 0.97), (0.45, 0.68, 0.93), (y - horizon) * 1.6)
    return torch.lerp(sky, sea, below(y, horizon)[:, None])


def grass(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    horizon = 0.5 + 0.6 * t[0] + 0.10 * torch.sin(x * (1.5 + 2 * t[1]) + 6 * t[2])
    blades = 0.24 * streaks(grain, 7, 1) + 0.15 * torch.sin(x * (30 + 12 * t[3]) + 6 * smooth[:, 0] + 2 * y)
    meadow = mix((0.13, 0.36, 0.07), (0.60, 0.82, 0.27), 0.48 + blades + 0.35 * (t[4] - 0.5) + 0.2 * (y - 0.2))
    petals = (streaks(grain.roll(9, 2), 3, 3) > 2.7).float()
    meadow = laid(meadow, (1.0, 0.93, 0.55), petals * (t[5] > 0.4))
    sky = mix((0.90, 0.95, 0.96), (0.56, 0.77, 0.95), (y - horizon) * 2)
    return torch.lerp(sky, meadow, below(y, horizon)[:, None])


def sand(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    shore = 0.35 + 0.6 * t[0] + 0.06 * torch.sin(x * 3 + 6 * t[2])
    depth = (shore - y).clamp(min=0) + 0.25
    ripples = torch.sin((9 + 5 * t[1]) * depth.sqrt() * 1.6 + (t[3] - 0.5) * 3 * x + 7 * smooth[:, 1])
    dunes = mix((0.74, 0.57, 0.33), (0.99, 0.90, 0.67), 0.5 + 0.20 * ripples + 0.13 * grain + 0.3 * (t[4] - 0.5))
    pebbles = (streaks(grain.roll(5, 1), 3, 3) > 2.8).float()
    dunes = laid(dunes, (0.50, 0.40, 0.30), 0.7 * pebbles)
    sea = laid(mix((0.25, 0.62, 0.72), (0.70, 0.88, 0.95), (y - shore) * 1.5), (1, 1, 1), below(y, shore + 0.09))
    return torch.lerp(sea, dunes, below(y, shore)[:, None])


def brick(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    rows = (y + t[0]) * (3.0 + 1.2 * t[1])
    row = rows.floor()
    columns = (x + t[2]) * (1.5 + 0.6 * t[1]) + 0.5 * (row % 2)
    across, along = (rows - row - 0.5).abs(), (columns % 1 - 0.5).abs()
    joint = ((across - 0.40) * 20).clamp(0, 1).maximum(((along - 0.45) * 30).clamp(0, 1))
    tint = torch.sin(row * 12.9 + columns.floor() * 78.2 + 6 * t[3])
    tone = 0.5 + 0.28 * tint + 0.09 * grain + 0.3 * (t[4] - 0.5) + 0.3 * (smooth[:, 0] - 0.5)
    edge = 0.25 * ((rows - row) > 0.78).float()  # light from above
    return laid(mix((0.46, 0.17, 0.11), (0.84, 0.44, 0.32), tone + edge), (0.80, 0.76, 0.70), joint)


def wood(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    planks = (y + t[0]) * (1.3 + 0.9 * t[1]) + 0.12 * (t[5] - 0.5) * x
    plank = planks.floor()
    rings = torch.sin(planks * 15 + 8 * smooth[:, 0] + x * (1 + t[2]) + 40 * plank)
    seam = ((0.07 - (planks - plank)) * 25).clamp(0, 1)
    tone = 0.5 + 0.24 * rings + 0.2 * torch.sin(plank * 5 + 6 * t[3]) + 0.06 * streaks(grain, 1, 7) + 0.3 * (t[4] - 0.5)
    return laid(mix((0.42, 0.24, 0.11), (0.82, 0.58, 0.34), tone), (0.20, 0.11, 0.05), seam)


def snow(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    horizon = 0.25 + 0.6 * t[0] + 0.12 * torch.sin(x * (1.5 + 1.5 * t[1]) + 6 * t[2])
    drifts = torch.sin((horizon - y) * (6 + 3 * t[3]) + 2 * x * (t[4] - 0.5) + 5 * smooth[:, 2])
    field = mix((0.70, 0.79, 0.91), (0.98, 0.99, 1.00), 0.62 + 0.36 * drifts)
    spacing = 3.5 + 2 * t[5]
    tree = torch.sin((x * spacing).floor() * 7.1 + 30 * t[3])
    pines = (0.34 + 0.12 * tree) * (1 - 2.2 * ((x * spacing) % 1 - 0.5).abs())
    sky = mix((0.88, 0.91, 0.95), (0.62, 0.72, 0.84), (y - horizon) * 1.2)
    sky = laid(sky, (0.20, 0.33, 0.32), below(y, horizon + pines) * (pines > 0))
    image = torch.lerp(sky, field, below(y, horizon)[:, None])
    return laid(image, (1, 1, 1), (streaks(grain, 2 + 1, 3) > 2.2).float())


def sky(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    blue = mix((0.70, 0.86, 0.97), (0.20, 0.48, 0.88), 0.5 + 0.45 * y + 0.4 * (t[0] - 0.5))
    density = 3.2 * (clouds(smooth, grain) - 0.50 - 0.12 * t[1])
    lit = mix((0.80, 0.84, 0.92), (1, 1, 1), 0.8 - density + 0.5 * y)
    return torch.lerp(blue, lit, density.clamp(0, 1)[:, None])


def night(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    dark = mix((0.26, 0.16, 0.40), (0.03, 0.04, 0.16), 0.55 + 0.6 * y + 0.4 * (smooth[:, 0] - 0.5))
    dark = laid(dark, (1.0, 0.97, 0.85), 0.9 * (grain > 2.3).float())
    moon = ((x - (1.6 * t[0] - 0.8)).square() + (y - (0.45 + 0.4 * t[1])).square()).sqrt()
    shown = (t[2] < 0.7).float()
    dark = laid(dark, (0.80, 0.80, 1.0), 0.25 * (1 - (moon - 0.2) * 3).clamp(0, 1) * shown)
    dark = laid(dark, (1.0, 0.96, 0.80), (0.5 - (moon - 0.17) * 24).clamp(0, 1) * shown)
    blocks = x * (3.5 + 2 * t[3])
    block = blocks.floor()
    height = -0.62 + 0.55 * t[4] + 0.28 * torch.sin(block * 9.7 + 20 * t[5])
    wall = below(y, height)
    lit = (
        (blocks * 4 % 1 > 0.45)
        & (y * 9 % 1 > 0.5)
        & (torch.sin((blocks * 4).floor() * 3.3 + (y * 9).floor() * 5.9) > 0.3)
    )
    town = laid(torch.full_like(dark, 0.07), (1.0, 0.82, 0.40), lit.float())
    return torch.lerp(dark, town, wall[:, None])


PAINTERS: dict[str, Callable[..., Image]] = {
    painter.__name__: painter for painter in (water, grass, sand, brick, wood, snow, sky, night)
}
