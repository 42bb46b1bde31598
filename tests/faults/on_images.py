"""What the product makes of an image file, by every way that it reads one; what is wrong with that, if anything is."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.faults import mutations
from tests.faults.watched import Attempt, each_drawn

SIDE = 64  # of what a model sees
OTHER = "dog/other.png"  # a whole image beside the one that is tried


def warm() -> None:
    """Import what every attempt takes before the memory of attempts is measured."""
    import imagehash  # noqa: F401
    from pillow_heif import register_heif_opener

    register_heif_opener()
    with tempfile.TemporaryDirectory() as folder:
        every_way(Path(folder), mutations.images()["plain.png"], "png")


def spoiled_images(attempt: Attempt, seed: int, count: int, folder: Path) -> None:
    """So many spoiled files through every way."""
    import logging

    logging.disable(logging.WARNING)
    wholes = mutations.images()
    names = mutations.suffixes(wholes)
    made = 0

    def take(case: tuple[str, bytes]) -> None:
        nonlocal made
        what, content = case
        suffix = names[made % len(names)] if made % 5 == 0 else _suffix(content, wholes)
        attempt(f"{suffix} ({what})", lambda: every_way(folder, content, suffix))
        made += 1

    each_drawn(mutations.spoiled(list(wholes.values())), seed, count, take)


def _suffix(content: bytes, wholes: dict[str, bytes]) -> str:
    """The extension of the file that it was."""
    return max(wholes, key=lambda name: _alike(content, wholes[name])).rpartition(".")[2]


def _alike(one: bytes, other: bytes) -> int:
    return sum(a == b for a, b in zip(one[:24], other[:24], strict=False))


def every_way(folder: Path, content: bytes, suffix: str) -> str | None:
    """Write the file into a folder of class folders, and take it through all that reads it."""
    name = _laid_out(folder, content, suffix)
    answers = {way: make(folder, name, content) for way, make in WAYS.items()}
    return judged(answers)


def judged(answers: dict[str, str | None]) -> str | None:
    """What is wrong with the answers: reasons of several lines, or in a library's own words for want of memory, or ways
    that do not agree. What claims to be as large as Pillow's limit lets pass may be refused for that in plain words:
    the memory that was really taken is measured beside.
    """
    for way, why in answers.items():
        if why is not None and ("\n" in why or not why or len(why) > 500):
            return f"{way}: not one line: {why!r:.200}"
        if why is not None and any(sign in why for sign in ("MemoryError", "allocate")):
            return f"{way}: out of memory: {why:.200}"
    refusing = {way for way, why in answers.items() if why is not None and way in AGREE}
    if refusing and refusing != AGREE & set(answers):
        return f"{', '.join(sorted(refusing))} refuse it, others do not: {answers}"
    return None


def _laid_out(folder: Path, content: bytes, suffix: str) -> str:
    shutil.rmtree(folder / "copies", ignore_errors=True)
    place = folder / "photos" / "cat"
    if not place.is_dir():
        place.mkdir(parents=True)
        (folder / "photos" / "dog").mkdir()
        (folder / "photos" / OTHER).write_bytes(mutations.images()["plain.png"])
    for left in place.iterdir():
        left.unlink()
    (place / f"it.{suffix}").write_bytes(content)
    return f"cat/it.{suffix}"


@cache
def _preprocess() -> Any:
    from robustft.data.sets import Preprocess

    return Preprocess(SIDE, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def _files(folder: Path, name: str, **reading: Any) -> Any:
    import torch

    from robustft.data.folders import ImageFiles

    return ImageFiles(folder / "photos", [name, OTHER], torch.arange(2), _preprocess(), **reading)


def _refusal(make: Callable[[], Any]) -> str | None:
    from robustft.common.errors import UserError

    try:
        make()
    except UserError as error:
        return str(error)
    return None


def scanned(folder: Path, name: str, _content: bytes) -> str | None:
    from robustft.data.own.listing import scan

    found = scan(folder / "photos", "data.train")
    return None if name in found.names and len(found) == 2 else f"scanned as {found.names}"


def checked(folder: Path, name: str, _content: bytes) -> str | None:
    """As ``check=data`` and as the start of a training look at it."""
    from robustft.data.facts import facts_of, oddities
    from robustft.data.own.reading import why_unreadable
    from robustft.data.reading import damaged_files

    paths = [str(folder / "photos" / each) for each in (name, OTHER)]
    facts = facts_of(paths, why_unreadable, "")
    oddities(paths, facts)
    quick = damaged_files(paths, thorough=False, title="", decode=why_unreadable)
    if paths[1] in quick or facts[1].wrong:
        return "the whole image is called damaged"
    if paths[0] in quick and facts[0].wrong is None:
        return f"a whole file is called damaged: {quick[paths[0]]}"
    return facts[0].wrong


def checked_as_imagenet(folder: Path, name: str, _content: bytes) -> str | None:
    from robustft.data.reading import decoding_error

    return decoding_error(str(folder / "photos" / name))


def prepared(folder: Path, name: str, _content: bytes) -> str | None:
    """Made into a copy, which has to give the pixels of the files."""
    import torch

    from robustft.data.own.reading import HOW, read_upright
    from robustft.data.prepare import prepare
    from robustft.data.prepared import PreparedImages, open_copy

    files = _files(folder, name, read=read_upright, how=HOW)
    if (why := _refusal(lambda: prepare({"train": files}, folder / "copies"))) is not None:
        return why
    copy = open_copy("train", files, folder / "copies")
    if not isinstance(copy, PreparedImages):
        raise AssertionError("there is no copy")
    if not torch.equal(copy[0][0], files[0][0]):
        raise AssertionError("the copy has other pixels")
    return None


def loaded(folder: Path, name: str, _content: bytes) -> str | None:
    from robustft.data.own.reading import HOW, read_upright

    return _batch_of(_files(folder, name, read=read_upright, how=HOW))


def loaded_as_imagenet(folder: Path, name: str, _content: bytes) -> str | None:
    return _batch_of(_files(folder, name))


def _batch_of(files: Any) -> str | None:
    from robustft.data.loading import make_loader

    def batch() -> None:
        (found,) = make_loader(files, [0, 1], 2, num_workers=0)
        assert found.images.shape == (2, 3, SIDE, SIDE), found.images.shape

    return _refusal(batch)


def predicted(folder: Path, name: str, _content: bytes) -> str | None:
    from robustft.data.loading import make_loader
    from robustft.data.own.reading import why_unreadable
    from robustft.deploy.images import listed
    from robustft.deploy.readable import UNREADABLE, ReadableImages

    path = str(folder / "photos" / name)
    (batch,) = make_loader(ReadableImages(listed([path]), _preprocess()), [0], 1, num_workers=0)
    if batch.labels.tolist() != [UNREADABLE]:
        return None
    return why_unreadable(path) or "could not be read just now"


def sent(_folder: Path, _name: str, content: bytes) -> str | None:
    """Dropped onto the page of ``robustft app``."""
    from robustft.data.own.reading import read_sent

    return _refusal(lambda: _preprocess().pixels(read_sent(content)))


WAYS = {
    "scan": scanned,
    "check": checked,
    "check of ImageNet": checked_as_imagenet,
    "prepare": prepared,
    "training": loaded,
    "training on ImageNet": loaded_as_imagenet,
    "predict": predicted,
    "app": sent,
}
# What one of these refuses, all have to: what check=data calls good must not end a training.
AGREE = {"check", "prepare", "training", "predict", "app"}


def bomb(folder: Path, name: str) -> str | None:
    """A bomb through each of the ways, as an attempt of its own."""
    path, way = folder / "bombs" / name.partition(": ")[2], name.partition(": ")[0]
    found = _laid_out(folder / "laid-out", path.read_bytes(), path.suffix[1:])
    return judged({way: WAYS[way](folder / "laid-out", found, path.read_bytes())})


def lay_bombs(folder: Path, quick: bool) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Write the bombs; what to attempt with them."""
    (folder / "bombs").mkdir(parents=True)
    for name, content in mutations.bombs(quick).items():
        (folder / "bombs" / name).write_bytes(content)
        for way in ("check", "training", "training on ImageNet"):  # the others decode as these do
            yield f"{way}: {name}", partial(bomb, folder, f"{way}: {name}")
