"""The scenes as image files, for `robustft example DIR`: domain/class/image, and tables of them."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torchvision.transforms.functional import to_pil_image

from robustft.common import paths
from robustft.common.files import atomic
from robustft.common.terminal import tracked
from robustft.data.scenes.captions import PLACES
from robustft.data.scenes.generate import generate
from robustft.data.scenes.recipes import CLASSES, CONTEXTS, SETS

DOMAINS = {"photo": "scenes", "drawing": "scenes_sketch", "rendition": "scenes_r", "unusual": "scenes_objectnet"}
SEED = 2001  # a draw of its own
SIDE = 96  # pixels of the images


def write_example(folder: Path, images: int) -> int:
    """Write `images` files for each domain and class, and tables of them; how many there are.

    `table.csv` has path, class and split of each, `places.csv` what is around the object (another task's label).

    Args:
        folder: must not be there, or be empty.

    Raises:
        UserError: something lies in the folder.
    """
    paths.refuse_filled(folder)
    rows = list(_images(folder, images))
    _table(folder / "table.csv", ("path", "label", "split"), (row[:3] for row in rows))
    _table(folder / "places.csv", ("path", "label"), ((path, f"thing {place}") for path, _, _, place in rows))
    return len(rows)


def _table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def _images(folder: Path, images: int) -> Iterator[tuple[str, str, str, str]]:
    """Write the files; path, label, split and place of each."""
    for domain, name in tracked(DOMAINS.items(), "Drawing", len(DOMAINS)):
        scenes = generate(SETS[name], 2 * images * len(CLASSES), size=SIDE, seed=SEED, name=f"example {domain}")
        for label, kind in enumerate(CLASSES):
            of_class = (scenes.labels == label).nonzero().flatten()[:images].tolist()
            (folder / domain / kind).mkdir(parents=True)
            for number, row in enumerate(of_class):
                path = f"{domain}/{kind}/{number:03d}.png"
                to_pil_image(scenes.images[row]).save(folder / path)
                place = PLACES[CONTEXTS[scenes.contexts[row]]]
                yield path, kind, "train" if domain == "photo" else domain, place
