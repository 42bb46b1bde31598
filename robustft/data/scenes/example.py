"""robustft example DIR: images as one has them, to try everything with: domain/class/image, and a table of them.

They are the scenes of the embedded benchmark as files, so that `model=tiny` knows what they show and nothing is
downloaded: photos (objects in their usual places, to train on), drawings, renditions, and photos of unusual places.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.progress import track
from torchvision.transforms.functional import to_pil_image

from robustft.common import entry
from robustft.common.errors import UserError
from robustft.common.files import atomic
from robustft.common.paths import expand
from robustft.data.scenes.generate import generate
from robustft.data.scenes.recipes import CLASSES, SETS

DOMAINS = {"photo": "scenes", "drawing": "scenes_sketch", "rendition": "scenes_r", "unusual": "scenes_objectnet"}
SEED = 2000  # a draw of its own
SIDE = 96  # pixels of the images


def write_example(folder: Path, images: int) -> int:
    """Write `images` files for each domain and class, and `table.csv` with all of them; how many there are.

    Args:
        folder: must not be there, or be empty.

    Raises:
        UserError: something lies in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give a new folder")
    rows = list(_images(folder, images))
    with atomic(folder / "table.csv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return len(rows)


def _images(folder: Path, images: int) -> Iterator[tuple[str, str, str]]:
    """Write the files; path, label and split of each."""
    for domain, name in track(DOMAINS.items(), "Drawing", transient=True):
        scenes = generate(SETS[name], 2 * images * len(CLASSES), size=SIDE, seed=SEED, name=f"example {domain}")
        for label, kind in enumerate(CLASSES):
            of_class = (scenes.labels == label).nonzero().flatten()[:images].tolist()
            (folder / domain / kind).mkdir(parents=True)
            for number, row in enumerate(of_class):
                path = f"{domain}/{kind}/{number:03d}.png"
                to_pil_image(scenes.images[row]).save(folder / path)
                yield path, kind, "train" if domain == "photo" else domain


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=entry.program("example"), description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=expand, metavar="DIR", help="a new folder")
    parser.add_argument("--images", type=int, default=20, help="images for each of 4 domains and 16 classes (20)")
    given = parser.parse_args(arguments)
    if given.images < 1:
        parser.error("--images: give a whole number, 1 or more")
    count = write_example(given.folder, given.images)
    print(f"{count:,} images in {given.folder}: {', '.join(DOMAINS)}, each with {len(CLASSES)} classes; table.csv")
    print(f"Next: {entry.program()} model=tiny data=domains data.root={given.folder} data.source=photo"
          " data.templates=plain")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(entry.answer(main))
