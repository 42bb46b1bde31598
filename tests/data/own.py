"""Images of a user's own for tests: tiny, each with a colour of its own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from robustft.data.sets import Preprocess

HALF = (0.5, 0.5, 0.5)
OPTIONS = {"preprocess": Preprocess(16, HALF, HALF), "seed": 0, "batch_size": 8, "eval_batch_size": 4, "num_workers": 0}
DOMAINS, CLASSES = ("photo", "sketch", "cartoon"), ("cat", "dog", "red_fox")


def colour(path: Path, number: int, size: tuple[int, int] = (20, 18)) -> Path:
    """An image of noise that no other number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_domains(root: Path, counts: Sequence[int] = (10, 7, 5), domains: Sequence[str] = DOMAINS) -> Path:
    """`domain/class/image`, with so many images of each class."""
    number = 0
    for domain in domains:
        for name, count in zip(CLASSES, counts, strict=True):
            for i in range(count):
                number += 1
                colour(root / domain / name / f"pic_{i}.png", number)
    return root
