"""Mistakes that are typed, and damaged images, results, configs, weights and checkpoints.

Images go through every way that the product reads one, and what one way refuses, the others have to refuse too. Files
are refused in one line, or read as what they were.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests import mistakes
from tests.faults import on_files, on_images
from tests.faults.case import Case, Options
from tests.faults.watched import Limits, watch, watch_each

IMAGES, FILES = 20_000, 2_000
OF_IMAGE, OF_BOMB, OF_FILE = Limits(20, 512), Limits(60, 2048), Limits(30, 1024)


def run(options: Options) -> Iterator[Case]:
    os.environ["ROBUSTFT_CACHE"] = str(options.folder / "cache")
    yield typed(options.folder / "here", ("names",) if options.quick else tuple(mistakes.MISTAKES))
    whole = options.folder / "whole"
    on_files.lay_out(whole)
    work, warm = partial(on_files.spoiled_files, whole), partial(on_files.warm, whole)
    count = 2 * len(on_files.KINDS) if options.quick else FILES
    yield watch(work, count, OF_FILE, options.folder / "files", options.seed, warm=warm).case(
        "results, configs, tables, weights and checkpoints spoiled"
    )
    if not options.quick:
        files = list(on_files.lay_bombs(whole, options.folder / "wild"))
        yield watch_each(files, OF_FILE, options.folder / "tamed", warm).case("files that ask for much memory or time")
    bombs = list(on_images.lay_bombs(options.folder, options.quick))
    yield watch_each(bombs, OF_BOMB, options.folder / "bombed", on_images.warm).case(
        "images that ask for much memory or time"
    )
    count = 100 if options.quick else IMAGES
    found = watch(
        on_images.spoiled_images, count, OF_IMAGE, options.folder / "images", options.seed, warm=on_images.warm
    )
    yield found.case("images spoiled, through scan, check, prepare, training, predict and app")


def typed(folder: Path, kinds: tuple[str, ...]) -> Case:
    """The catalogue of mistakes (``tests/mistakes.py``), through the real command."""
    folder.mkdir()
    lost, tried, longest = [], 0, 0.0
    for _, line, words, answer in mistakes.run_all(folder, kinds):
        tried, longest = tried + 1, max(longest, answer.seconds)
        lost += [f"{line}: {fault}" for fault in mistakes.faults(words, answer)][:1]
    return Case("mistakes through the real command", tried, tuple(lost), longest)
