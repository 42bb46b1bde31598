"""Mistakes that are typed, and damaged images, results, configs, weights and checkpoints.

Images go through every way that the product reads one. What one way refuses, the others have to refuse too.
"""

from collections.abc import Iterator

from tests.faults import on_images
from tests.faults.case import Case, Options
from tests.faults.watched import Limits, watch, watch_each

IMAGES = 20_000
OF_IMAGE, OF_BOMB = Limits(20, 512), Limits(60, 2048)


def run(options: Options) -> Iterator[Case]:
    count = 300 if options.quick else IMAGES
    found = watch(on_images.spoiled_images, count, OF_IMAGE, options.folder / "images", options.seed, warm=on_images.warm)
    yield found.case("images spoiled, through scan, check, prepare, training, predict and app")
    bombs = list(on_images.lay_bombs(options.folder, options.quick))
    yield watch_each(bombs, OF_BOMB, options.folder / "bombed", on_images.warm).case("images that ask for much memory or time")
