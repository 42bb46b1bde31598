"""The eight backgrounds. Each fills the image from coordinates in [-1, 1] (y up), six random numbers,
three smooth random fields and per-pixel normal noise."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Plane = Float[Tensor, "batch height width"]
Image = Float[Tensor, "batch 3 height width"]


def mix(low: tuple[float, float, float], high: tuple[float, float, float], share: Plane) -> Image:
    a, b = torch.tensor(low)[:, None, None], torch.tensor(high)[:, None, None]
    return a + share.clamp(0, 1)[:, None] * (b - a)


def water(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    waves = torch.sin(y * (14 + 8 * t[0]) + 3 * torch.sin(x * (2 + 3 * t[1]) + 6 * t[2]) + 5 * smooth[:, 0])
    return mix((0.05, 0.28, 0.52), (0.45, 0.76, 0.90), 0.5 + 0.35 * waves + 0.3 * (t[3] - 0.5))


def grass(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    blades = torch.nn.functional.avg_pool2d(grain[:, None], (5, 1), 1, (2, 0))[:, 0]
    tufts = torch.sin(x * (34 + 14 * t[0]) + 5 * smooth[:, 0] + 2 * y * (t[1] - 0.5))
    return mix((0.10, 0.32, 0.06), (0.56, 0.80, 0.24), 0.45 + 0.6 * blades + 0.2 * tufts + 0.4 * (t[2] - 0.5))


def sand(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    ripples = torch.sin((x * (t[0] - 0.5) + y) * (9 + 5 * t[1]) + 7 * smooth[:, 1])
    return mix((0.70, 0.54, 0.30), (0.98, 0.88, 0.64), 0.5 + 0.2 * ripples + 0.22 * grain + 0.3 * (t[2] - 0.5))


def brick(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    rows = (y + t[0]) * (3.2 + 1.4 * t[1])
    row = rows.floor()
    columns = (x + t[2]) * (1.6 + 0.7 * t[1]) + 0.5 * (row % 2)
    joint = ((rows - row - 0.5).abs() > 0.40) | ((columns % 1 - 0.5).abs() > 0.44)
    tint = torch.sin(row * 12.9 + columns.floor() * 78.2 + 6 * t[3])
    wall = mix((0.50, 0.18, 0.12), (0.80, 0.42, 0.32), 0.5 + 0.3 * tint + 0.1 * grain + 0.3 * (t[4] - 0.5))
    return torch.where(joint[:, None], torch.tensor([0.78, 0.75, 0.70])[:, None, None], wall)


def wood(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    planks = (y + t[0]) * (1.5 + 1.2 * t[1])
    plank = planks.floor()
    rings = torch.sin(planks * 16 + 7 * smooth[:, 0] + x * (1 + t[2]) + 40 * plank)
    seam = (planks - plank) < 0.09
    tone = 0.5 + 0.28 * rings + 0.2 * torch.sin(plank * 5 + 6 * t[3]) + 0.08 * grain + 0.3 * (t[4] - 0.5)
    return mix((0.36, 0.20, 0.09), (0.74, 0.50, 0.28), torch.where(seam, -0.1, tone))


def snow(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    drifts = torch.sin(y * (4 + 3 * t[0]) + 3 * torch.sin(x * (1.5 + t[1]) + 6 * t[2]) + 3 * smooth[:, 2])
    flakes = (grain > 1.9).float()
    return mix((0.66, 0.74, 0.86), (0.97, 0.98, 1.00), 0.5 + 0.35 * drifts + 0.6 * flakes + 0.3 * (t[3] - 0.5))


def sky(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    blue = mix((0.28, 0.55, 0.92), (0.68, 0.85, 0.98), 0.5 - 0.4 * y + 0.4 * (t[0] - 0.5))
    clouds = ((smooth[:, 0] + 0.6 * smooth[:, 1] - 0.75 - 0.2 * t[1]) * 3).clamp(0, 1)
    return blue + clouds[:, None] * (0.98 - blue)


def night(x: Tensor, y: Tensor, t: list[Tensor], smooth: Tensor, grain: Tensor) -> Image:
    dark = mix((0.02, 0.02, 0.10), (0.14, 0.12, 0.36), 0.5 - 0.4 * y + 0.5 * (smooth[:, 0] - 0.5))
    stars = (grain > 2.0).float() * 0.9
    moon = ((x - (1.6 * t[0] - 0.8)).square() + (y - (0.5 + 0.4 * t[1])).square()).sqrt()
    glow = (1 - (moon - 0.14) * 24).clamp(0, 1) * (t[2] < 0.7)
    return dark + stars.maximum(glow)[:, None] * (torch.tensor([1.0, 0.97, 0.80])[:, None, None] - dark)


PAINTERS: dict[str, Callable[..., Image]] = {
    painter.__name__: painter for painter in (water, grass, sand, brick, wood, snow, sky, night)
}
