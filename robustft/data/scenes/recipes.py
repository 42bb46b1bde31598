"""What is drawn in each set: the distribution over scenes, and one draw from it per image.

Image i of a set is a function of (seed, set name, i) alone: its random numbers come from a counter-based
generator (Philox) keyed by these three, so a set's first images do not depend on how many follow.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustft.data.scenes.shapes import SHAPES

VERSION = "scenes-2"  # of the benchmark: raised with whatever changes its pictures, so that results are not mixed
CLASSES = tuple(SHAPES)
CONTEXTS = ("water", "grass", "sand", "brick", "wood", "snow", "sky", "night")
SKETCHES = ("pencil", "ink", "charcoal", "chalk", "blueprint", "marker")
RENDITIONS = ("cartoon", "painting", "watercolour", "mosaic", "poster", "comic", "stitch", "neon")
STYLES = ("photo", *SKETCHES, *RENDITIONS)
COLOURS = {
    "red": (0.86, 0.18, 0.16), "orange": (0.96, 0.55, 0.14), "yellow": (0.97, 0.85, 0.22),
    "green": (0.22, 0.62, 0.26), "cyan": (0.26, 0.77, 0.80), "blue": (0.20, 0.37, 0.86),
    "purple": (0.55, 0.28, 0.72), "pink": (0.97, 0.56, 0.72), "brown": (0.50, 0.32, 0.19),
    "black": (0.17, 0.17, 0.20), "gray": (0.56, 0.58, 0.62), "white": (0.95, 0.95, 0.93),
}  # fmt: skip
PREFERRED = (
    "orange", "red", "green", "pink", "purple", "yellow", "brown", "blue",
    "white", "cyan", "red", "orange", "purple", "black", "yellow", "gray",
)  # fmt: skip
CLUTTER = 6  # most clutter shapes in an image
NUMBERS = 64 + 7 * CLUTTER  # uniform numbers an image may use
GRID = 7  # knots of the smooth random fields


@dataclass(frozen=True)
class Recipe:
    """The distribution of a set. Lengths are in half images, angles in degrees, intensities in 0...1."""

    home: float | None  # probability of the class's home context, else any context; None: never home
    preferred: float = 0.0  # probability of the class's own colour, else any colour
    foreign: float = 0.0  # probability of another class's own colour
    styles: Mapping[str, float] | None = None  # weights; None: photos
    scale: tuple[float, float] = (0.6, 1.1)
    stray: float = 0.25  # how far the object's centre is from the image's at most, more where there is room
    turn: float = 25.0
    aspect: float = 0.10  # standard deviation of log(width / height)
    noise: float = 0.035
    cast: float = 0.08  # standard deviation of log(gain) of each colour: the light's colour
    clutter: float = 2.0  # mean number of clutter shapes (Poisson, at most CLUTTER)
    front: float = 0.3  # probability of something in front of the object
    dim: float = 0.25  # probability of low contrast
    blur: float = 0.25
    veil: float = 0.3  # probability of a bank of mist before the object
    density: tuple[float, float] = (0.65, 0.95)  # of the mist


def evenly(styles: Sequence[str], weight: float = 1.0) -> dict[str, float]:
    return dict.fromkeys(styles, weight / len(styles))


PRETRAINING = Recipe(
    home=0.0, styles={"photo": 0.46, **evenly(SKETCHES, 0.22), **evenly(RENDITIONS, 0.32)}, scale=(0.5, 1.0),
    turn=30.0, noise=0.015, cast=0.03, clutter=0.7, front=0.05, dim=0.05, blur=0.05, veil=0.0,
)  # fmt: skip
CORRELATION = 0.93  # of class and context in training and ID images
ID = Recipe(home=CORRELATION, preferred=0.6)
RENDITION = Recipe(
    home=0.3, preferred=0.3, styles=evenly(RENDITIONS), scale=(0.5, 1.05), front=0.2, veil=0.0,
)  # fmt: skip
SETS: dict[str, Recipe] = {
    "train": ID,
    "scenes": ID,
    "scenes_v2": replace(ID, home=0.73, preferred=0.3, scale=(0.55, 1.05), turn=30.0, noise=0.04, clutter=2.5),
    "scenes_r": RENDITION,
    "scenes_sketch": replace(RENDITION, styles=evenly(SKETCHES)),
    "scenes_objectnet": replace(
        ID, home=0.0, preferred=0.0, scale=(0.55, 1.15), turn=60.0, aspect=0.25, front=0.2, veil=0.12,
    ),
    "scenes_a": replace(
        ID, home=None, preferred=0.0, foreign=0.5, noise=0.05, clutter=3.0, dim=0.4, veil=0.15, density=(0.6, 0.85),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Scenes:
    """Everything an image is a function of, one row an image."""

    label: Int64[Tensor, " batch"]
    context: Int64[Tensor, " batch"]
    style: Int64[Tensor, " batch"]
    colour: Int64[Tensor, " batch"]
    accent: Int64[Tensor, " batch"]
    shape: Float[Tensor, "batch 5"]
    scale: Float[Tensor, " batch"]
    angle: Float[Tensor, " batch"]  # radians, counter-clockwise
    mirrored: Bool[Tensor, " batch"]
    aspect: Float[Tensor, " batch"]  # log(width / height)
    centre: Float[Tensor, "batch 2"]
    contour: Bool[Tensor, " batch"]
    light: Float[Tensor, "batch 2"]  # where it comes from: above
    pattern: Float[Tensor, "batch 3"]  # of the object's surface, uniform
    texture: Float[Tensor, "batch 6"]  # of the context, uniform
    brush: Float[Tensor, "batch 4"]  # of the style, uniform
    clutter: Float[Tensor, "batch items 7"]  # kind, x, y, size, angle, colour, shown (all 0...1)
    front: Float[Tensor, "batch 6"]  # shown, kind, offset, angle, size, colour (all 0...1)
    veil: Float[Tensor, " batch"]  # density of the mist
    cast: Float[Tensor, "batch 3"]  # gain of each colour
    contrast: Float[Tensor, " batch"]
    blur: Float[Tensor, " batch"]
    noise: float
    fields: Float[Tensor, "batch 3 grid grid"]  # knots of smooth random fields, uniform
    grain: Float[Tensor, "batch 4 height width"]  # per pixel, normal: sensor noise (RGB) and texture


class Dice:
    """Turns a table of uniform numbers into random variables, a column (or several) at a time."""

    def __init__(self, numbers: Float[Tensor, "batch numbers"]) -> None:
        self.numbers, self.used = numbers, 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Float[Tensor, " batch"]:
        self.used += 1
        return low + (high - low) * self.numbers[:, self.used - 1]

    def uniforms(self, count: int) -> Float[Tensor, "batch count"]:
        self.used += count
        return self.numbers[:, self.used - count : self.used]

    def chance(self, probability: float) -> Bool[Tensor, " batch"]:
        return self.uniform() < probability

    def pick(self, weights: Sequence[float]) -> Int64[Tensor, " batch"]:
        edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        return torch.bucketize(self.uniform().double() * edges[-1], edges, right=True)

    def below(self, count: int) -> Int64[Tensor, " batch"]:
        return self.pick([1.0] * count)

    def normal(self) -> Float[Tensor, " batch"]:
        return 2**0.5 * torch.erfinv(self.uniform(-0.9999, 0.9999))


def draw(recipe: Recipe, indices: Sequence[int], size: int, seed: int, name: str) -> Scenes:
    """Scenes number `indices` of the set `name`; labels go round the classes, so every set is balanced."""
    numbers = np.empty((len(indices), NUMBERS), np.float32)
    fields = np.empty((len(indices), 3, GRID, GRID), np.float32)
    grain = np.empty((len(indices), 4, size, size), np.float32)
    for row, index in enumerate(indices):
        digest = hashlib.blake2b(f"{name}/{seed}/{index}".encode(), digest_size=16).digest()
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
        random.random(out=numbers[row], dtype=np.float32)
        random.random(out=fields[row], dtype=np.float32)
        random.standard_normal(out=grain[row], dtype=np.float32)
    dice = Dice(torch.from_numpy(numbers))
    label = torch.tensor(indices) % len(CLASSES)

    home = label // 2  # two classes live in each context
    if recipe.home is None:
        context = (home + 1 + dice.below(len(CONTEXTS) - 1)) % len(CONTEXTS)
        dice.uniform()
    else:
        context = torch.where(dice.chance(recipe.home), home, dice.below(len(CONTEXTS)))
    style = dice.pick([(recipe.styles or {"photo": 1.0}).get(name, 0.0) for name in STYLES])

    own = torch.tensor([list(COLOURS).index(name) for name in PREFERRED])
    foreign = own[(label + 1 + dice.below(len(CLASSES) - 1)) % len(CLASSES)]
    chosen, colour = dice.uniform(), dice.below(len(COLOURS))
    colour = torch.where(chosen < recipe.preferred, own[label], colour)
    colour = torch.where(1 - chosen < recipe.foreign, foreign, colour)
    accent = (colour + 1 + dice.below(len(COLOURS) - 1)) % len(COLOURS)

    scale = dice.uniform(*recipe.scale)
    room = (0.9 - scale).clamp(min=recipe.stray)[:, None]
    items = dice.uniforms(7 * CLUTTER).unflatten(1, (CLUTTER, 7)).clone()
    items[..., 6] = torch.arange(CLUTTER) < poisson(dice.uniform(), recipe.clutter)[:, None]
    front = dice.uniforms(6).clone()
    front[:, 0] = front[:, 0] < recipe.front
    return Scenes(
        label=label,
        context=context,
        style=style,
        colour=colour,
        accent=accent,
        shape=dice.uniforms(5),
        scale=scale,
        angle=torch.deg2rad(dice.uniform(-recipe.turn, recipe.turn)),
        mirrored=dice.chance(0.5),
        aspect=recipe.aspect * dice.normal(),
        centre=room * (2 * dice.uniforms(2) - 1),
        contour=dice.chance(0.8) | (style > 0),
        light=torch.stack([dice.uniform(-1.0, 1.0), dice.uniform(0.4, 1.0)], dim=1),
        pattern=dice.uniforms(3),
        texture=dice.uniforms(6),
        brush=dice.uniforms(4),
        clutter=items,
        front=front,
        veil=torch.where(dice.chance(recipe.veil), dice.uniform(*recipe.density), 0.0),
        cast=(recipe.cast * torch.stack([dice.normal() for _ in range(3)], dim=1)).exp(),
        contrast=torch.where(dice.chance(recipe.dim), dice.uniform(0.35, 0.7), 1.0),
        blur=torch.where(dice.chance(recipe.blur), dice.uniform(0.5, 1.0), 0.0),
        noise=recipe.noise,
        fields=torch.from_numpy(fields),
        grain=torch.from_numpy(grain),
    )


def poisson(uniform: Float[Tensor, " batch"], mean: float) -> Int64[Tensor, " batch"]:
    """The Poisson variable at the given quantiles, cut off at CLUTTER."""
    counts = torch.arange(CLUTTER, dtype=torch.float64)
    cumulative = (counts * np.log(mean) - mean - torch.lgamma(counts + 1)).exp().cumsum(0)
    return torch.bucketize(uniform.double(), cumulative, right=True)
