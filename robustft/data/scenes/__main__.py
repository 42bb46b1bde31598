"""python -m robustft.data.scenes --sheet docs/scenes.png: a contact sheet of all sets."""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from robustft.common import entry
from robustft.common.files import atomic
from robustft.common.paths import expand, for_file
from robustft.data.scenes.generate import generate
from robustft.data.scenes.recipes import CLASSES, PRETRAINING, SETS

SIZE, GAP = 64, 2  # pixels a side of an image, white ones between images
TITLES = {
    "pretraining": "pre-training\ncontext, colour and\nstyle of any kind",
    "scenes": "scenes (ID)\nclass at home 93%,\nown colour 60%",
    "scenes_v2": "scenes_v2\na slightly\ndifferent draw",
    "scenes_r": "scenes_r\neight kinds of\nrenditions",
    "scenes_sketch": "scenes_sketch\nsix kinds of\nsketches",
    "scenes_objectnet": "scenes_objectnet\nany context, turned,\nscaled, stretched",
    "scenes_a": "scenes_a\nnever at home,\nanother's colour",
}


def sheet(path: Path, examples: int = 2, seed: int = 0) -> None:
    """Rows: sets; columns: classes; `examples` images of each, one above the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(TITLES), 1, figsize=(16, 12.9))
    figure.subplots_adjust(left=0.11, right=0.995, top=0.97, bottom=0.005, hspace=0.05)
    for panel, (name, title) in zip(axes, TITLES.items(), strict=True):
        recipe = PRETRAINING if name == "pretraining" else SETS[name]
        images = generate(recipe, examples * len(CLASSES), size=SIZE, seed=seed, name=name).images
        rows = [list(images[row * len(CLASSES) :][: len(CLASSES)]) for row in range(examples)]
        size = images.shape[-1]
        panel.imshow(_tiled(rows))
        panel.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=11)
        panel.set_yticks([])
        panel.set_xticks([])
        panel.spines[:].set_visible(False)
        if panel is axes[0]:
            panel.xaxis.tick_top()
            panel.set_xticks([size * (i + 0.5) + GAP * i for i in range(len(CLASSES))], CLASSES, fontsize=11)
            panel.tick_params(length=0)
    pixels = io.BytesIO()
    figure.savefig(pixels, dpi=80)
    with atomic(path) as partial:  # with a palette: a third of the bytes
        Image.open(pixels).convert("RGB").quantize(256, kmeans=4).save(partial, "PNG", optimize=True)


def _tiled(rows: list[list[Tensor]]) -> UInt8[np.ndarray, "height width 3"]:
    padded = [torch.cat([F.pad(image, (0, GAP, 0, GAP), value=255) for image in row], dim=2) for row in rows]
    return torch.cat(padded, dim=1).permute(1, 2, 0).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m robustft.data.scenes", description=__doc__)
    parser.add_argument("--sheet", type=expand, required=True, help="the picture to write (PNG)")
    parser.add_argument("--examples", type=int, default=2, help="images of each class and set")
    parser.add_argument("--seed", type=int, default=0, help="data.data_seed")
    arguments = parser.parse_args()
    sheet(for_file(arguments.sheet, "--sheet"), arguments.examples, arguments.seed)
    print(arguments.sheet)


if __name__ == "__main__":
    sys.exit(entry.answer(main))
