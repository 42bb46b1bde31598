"""Which images there are, and what is drawn from them: functions of classes and of paths inside the class folders.

So the same images in folders, in domain folders or in a table give the same draws, and the same numbers.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from robustft.common.cache import cache_folder, digest, optional
from robustft.common.errors import UserError, reason
from robustft.common.files import atomic
from robustft.common.wording import counted, noun, some
from robustft.data import ahead
from robustft.data.sampling import shares
from robustft.data.walk import UNKNOWN, folders_in, images_below, is_image_name

log = logging.getLogger(__name__)

MANY = 100_000  # images whose draws are remembered
VERSION = 1  # of `ranks`: another number, other draws


@dataclass(frozen=True)
class Listing:
    """The images of a set, by class and inside of it by path.

    Attributes:
        root: what `names` are relative to.
        names: the path of each image.
        classes: the class of each image, as it is called on disk.
        inner: the path of each image inside of its class folder: with the class what draws go by.
        domains: the domain of each image; none where there is only one.
        groups: the group of each image, of those among which the worst counts; none where there are none.
        stamps: size and time of change (ns) of each image's file, UNKNOWN where it was not looked at; None: of all.
    """

    root: Path
    names: Sequence[str]
    classes: Sequence[str]
    inner: Sequence[str]
    domains: Sequence[str] = ()
    groups: Sequence[str] = ()
    stamps: Int64[np.ndarray, "images 2"] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def ordered(self) -> "Listing":
        """In the order of classes, inside of them by path, then by domain."""
        domains = self.domains or [""] * len(self)
        keys = list(zip(self.classes, self.inner, domains, self.names, strict=True))
        return self.select(sorted(range(len(self)), key=keys.__getitem__))

    def select(self, positions: Sequence[int]) -> "Listing":
        parts = {part.name: getattr(self, part.name) for part in fields(self) if part.name not in ("root", "stamps")}
        chosen: dict[str, Any] = {key: [part[i] for i in positions] if part else [] for key, part in parts.items()}
        return replace(self, **chosen, stamps=None if self.stamps is None else self.stamps[positions])

    def keys(self) -> list[str]:
        """What draws go by, for each image; no two are the same where domains tell them apart."""
        if not self.domains:
            return [f"{c}/{i}" for c, i in zip(self.classes, self.inner, strict=True)]
        return [f"{c}/{i}\0{d}" for c, i, d in zip(self.classes, self.inner, self.domains, strict=True)]

    def labels(self, classes: Sequence[str]) -> Int64[Tensor, " images"]:
        """The position of each image's class among `classes`."""
        number = {name: k for k, name in enumerate(classes)}
        return torch.from_numpy(np.fromiter(map(number.__getitem__, self.classes), np.int64, len(self)))


def joined(listings: Sequence[Listing], domains: Sequence[str]) -> Listing:
    """Several domains as one listing; of one alone nothing tells that it is a domain."""
    if len(listings) == 1:
        return listings[0]
    parts: dict[str, Any] = {
        key: [v for one in listings for v in getattr(one, key)] for key in ("names", "classes", "inner")
    }
    of_each = [domain for one, domain in zip(listings, domains, strict=True) for _ in one.names]
    return Listing(listings[0].root, **parts, domains=of_each).ordered()


def shared(ours: Listing, theirs: Listing) -> list[str]:
    """The names in `theirs` of images that `ours` has too: the same file, as far as paths tell.

    Links inside of the folders are not followed: `check=data` compares what files hold.
    """
    here, there = (os.path.realpath(one.root) for one in (ours, theirs))
    if here == there:
        common = set(ours.names).intersection(theirs.names)
        return [name for name in theirs.names if name in common]
    if os.path.commonpath([here, there]) not in (here, there):
        return []
    known = {os.path.join(here, name) for name in ours.names}
    return [name for name in theirs.names if os.path.join(there, name) in known]


def scan(folder: Path, what: str, root: Path | None = None) -> Listing:
    """The images below class folders, at any depth; empty class folders are left out with a line.

    Args:
        what: the setting that names the folder, for messages.
        root: what the names of images shall be relative to; None: the folder.

    Raises:
        UserError: there are no class folders, or no images in them.
    """
    root = folder if root is None else root
    before = "" if root == folder else os.path.join(os.path.relpath(folder, root), "")
    names, classes, inner, empty, stamps = [], [], [], [], []
    folders = folders_in(folder)
    with os.scandir(folder) as entries:
        loose = sum(1 for entry in entries if is_image_name(entry.name) and entry.is_file())
    _refuse_splits(folder, folders, what)
    seen = ahead.found(folder)
    for class_folder in folders:
        inside, looked = seen.names.get(class_folder), seen.stamps.get(class_folder)
        try:
            inside = sorted(images_below(folder / class_folder)) if inside is None else inside
        except OSError as error:
            raise UserError(f"{what}={folder}: {error.filename} cannot be looked into ({reason(error)})") from error
        stamps.append(np.full(2 * len(inside), UNKNOWN).tobytes() if looked is None else looked)
        if not inside:
            empty.append(class_folder)
        start = f"{before}{class_folder}{os.sep}"
        names += [start + path for path in inside]
        classes += [class_folder] * len(inside)
        inner += inside
    if not names:
        there = (
            f"{counted(loose, 'image')} {noun(loose, 'lies', 'lie')} in it directly"
            if loose
            else "nothing like that is in it"
        )
        raise UserError(
            f"{what}={folder}: expected a folder for each class with its images in it, and {there}."
            + (" Its folders are empty." if folders else "")
        )
    if empty:
        log.info("%s: left out %s: %s", folder, counted(len(empty), "empty class folder"), some(empty))
    if loose:
        log.info("%s: passed over %s in no class folder", folder, counted(loose, "image"))
    if root == folder and (inside := _shared_folders(classes, inner)):
        which = f"data=domains data.root={folder} data.source={classes[0]}"
        log.warning(
            "%s=%s: its folders (%s) hold the same folders (%s) and are taken for the classes. Where they are"
            " domains: %s",
            *(what, folder, some(list(dict.fromkeys(classes))), some(inside)),
            which if what == "data.train" else f"{what}={folder / classes[0]}",
        )
    known = np.frombuffer(bytearray().join(stamps), np.int64).reshape(-1, 2)
    return Listing(
        root, names, classes, inner, stamps=known if seen.stamps else None
    )  # in the order that `ordered` gives


def _shared_folders(classes: Sequence[str], inner: Sequence[str]) -> list[str]:
    """The folders that most of several class folders have in them where all images lie in such folders: two or more of
    them look like classes, and what is taken for classes like domains.
    """
    holders: dict[str, set[str]] = {}
    for name, path in zip(classes, inner, strict=True):
        first, separator, _ = path.partition(os.sep)
        if not separator:
            return []
        holders.setdefault(first, set()).add(name)
    of_all = len(set(classes))
    shared = sorted(first for first, held_by in holders.items() if len(held_by) > max(1, of_all // 2))
    return shared if len(shared) > max(1, len(holders) // 2) else []


def _refuse_splits(folder: Path, folders: Sequence[str], what: str) -> None:
    """A folder of splits was meant to be looked into."""
    small = {name.lower(): name for name in folders}
    evaluation = [small[name] for name in ("val", "valid", "validation", "test") if name in small]
    if "train" in small and evaluation and len(folders) <= 3:
        raise UserError(
            f"{what}={folder}: it holds {', '.join(folders)}, which are no classes. Give data.train={folder}/"
            f"{small['train']} data.val={folder}/{evaluation[0]}"
        )


def inside_of(path: str, name: str) -> str:
    """The part of a path behind the folder of its class; the whole of it where there is none."""
    parts = PurePosixPath(path.replace(os.sep, "/")).parts
    behind = [at + 1 for at, part in enumerate(parts[:-1]) if part == name]
    return "/".join(parts[behind[-1] :]) if behind else "/".join(parts)


def ranks(purpose: str, keys: Sequence[str], seed: int) -> Int64[np.ndarray, " images"]:
    """A random number for each key, which other keys and draws for another purpose have no influence on.

    Those of a large set are remembered: reading them takes a tenth of the time.
    """
    file = _remembered(purpose, keys, seed)
    if file is not None:
        with suppress(OSError, ValueError, EOFError):  # it is not there, or cut short
            found = np.load(file)
            if found.shape == (len(keys),) and found.dtype == np.int64:
                return found
    begin = f"{purpose}\0{seed}\0"
    digests = [hashlib.sha256((begin + key).encode("utf-8", "surrogateescape")).digest() for key in keys]
    first = np.frombuffer(b"".join(digests), ">u8")[::4]  # of each digest's 32 bytes
    numbers = (first >> 1).astype(np.int64)
    if file is not None:
        with optional(file.parent), atomic(file) as partial, partial.open("wb") as stream:
            np.save(stream, numbers)
    return numbers


def _remembered(purpose: str, keys: Sequence[str], seed: int) -> Path | None:
    """Where the numbers of a large set are kept."""
    if len(keys) < MANY:
        return None
    of_keys = hashlib.sha256("\0\0".join(keys).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / "draws" / f"{digest(VERSION, purpose, seed, of_keys)}.npy"


def drawn(
    purpose: str, labels: Int64[Tensor, " images"], keys: Sequence[str], size: int, seed: int
) -> Bool[Tensor, " images"]:
    """So many images, of each class its share; at least one of every class is left.

    Args:
        purpose: what they are drawn for: draws for other purposes are others, also with the same seed.
        size: how many in all; at most as many as can be drawn.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    present, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    size = min(size, int((counts - 1).sum()))
    if size < 1:
        return chosen
    take = shares(counts, size, seed)
    random = ranks(purpose, keys, seed)
    order = torch.from_numpy(_by_class(inverse, random))
    rank_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[inverse[order]]
    chosen[order[rank_in_class < take[inverse[order]]]] = True
    return chosen


def _by_class(classes: Int64[Tensor, " images"], random: Int64[np.ndarray, " images"]) -> Int64[np.ndarray, " images"]:
    """The order by class, random within each; of equal numbers the first comes first."""
    order = np.argsort(random, kind="stable")
    few = len(classes) == 0 or int(classes.max()) < 2**16
    small = classes.numpy().astype(np.uint16 if few else np.int64)  # numbers of 16 bits are sorted by their digits
    return order[np.argsort(small[order], kind="stable")]


def at_most_each(
    labels: Int64[Tensor, " images"], keys: Sequence[str], most: int, seed: int
) -> Bool[Tensor, " images"]:
    """At most so many images of every class, drawn."""
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    order = torch.from_numpy(_by_class(inverse, ranks("shots", keys, seed)))
    rank_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[inverse[order]]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order[rank_in_class < most]] = True
    return chosen
