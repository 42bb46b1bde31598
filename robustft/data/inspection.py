"""Looking at data: every image of every set, and those that two sets share."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from robustft.common.errors import UserError, install
from robustft.common.wording import counted, some
from robustft.data.datamodule import RobustnessData
from robustft.data.duplicates import Pair, leaks
from robustft.data.facts import Facts, can_hash, facts_of, facts_of_contents, oddities
from robustft.data.folders import ImageFiles, image_paths, keys_of, whole_of
from robustft.data.own.reading import read_sent
from robustft.data.prepared import PreparedImages
from robustft.data.reading import decoding_error

SKEWED = 3  # the largest class has so many times the images of the smallest
LISTED = 3  # images named on the screen of each kind; the page has more


@dataclass
class Looked:
    """What was found.

    Attributes:
        sets: per set `path`, `classes`, `images`, `official` (images of the published set), `damaged` (path -> reason),
            `odd` (path -> what is odd), `formats` (how many files of each), `skew` (largest class over smallest),
            `error` (None if the set is as it should be, its damaged images aside).
        paths: the files of each part, or what stands for them: of a set, or of the hold-out, which is taken out of the
            training images.
        read: per part, where images are no files: what gives the content of one that `paths` has.
        leaks: per two parts the images that they share or nearly share.
    """

    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    paths: dict[str, list[str]] = field(default_factory=dict)
    read: dict[str, Callable[[str], bytes]] = field(default_factory=dict)
    leaks: dict[tuple[str, str], list[Pair]] = field(default_factory=dict)

    def leaked(self, name: str, trained: str) -> int | None:
        """Images of a set that are among those trained on; None where that is not known."""
        known = name in self.paths and trained in self.paths
        return len(self.leaks.get((name, trained), [])) if known else None


def inspect(datamodule: RobustnessData) -> Looked:
    """Look at every image of every set of the data module, in its order; every image is decoded, or read in the
    prepared copy that a run would use. Sets of which the files are looked at are compared with each other.
    """
    looked, parts = Looked(), dict[str, list[Facts]]()
    decode = getattr(datamodule, "decoding_error", decoding_error)
    for name, find in datamodule.parts().items():
        found: dict[str, Any] = {"path": None, "classes": 0, "images": 0}
        found |= {"official": datamodule.official_images.get(name), "damaged": {}, "odd": {}, "formats": {}}
        found |= {"skew": None, "error": None}
        looked.sets[name] = found
        try:
            images = find()
        except UserError as error:
            found["error"] = str(error)
            continue
        counts = images.labels.unique(return_counts=True)[1]
        found |= {"classes": len(counts), "images": len(images), "skew": float(counts.max() / counts.min())}
        whole: Any
        whole, positions = whole_of(images)
        if isinstance(whole, ImageFiles):
            paths = image_paths(images)
            facts = facts_of(paths, decode, f"Decoding {name}")
            found["path"] = str(whole.root)
            _note(looked, parts, name, paths, facts)
        elif hasattr(whole, "content"):
            keys = keys_of(images)
            looked.read[name] = partial(_content, whole, dict(zip(keys, positions.tolist(), strict=True)))
            facts = facts_of_contents(keys, looked.read[name], read_sent, f"Decoding {name}")
            found["path"] = f"split {whole.name}"
            _note(looked, parts, name, keys, facts, named=False)
        elif isinstance(whole, PreparedImages):
            found |= {"path": str(whole.folder), "damaged": whole.damaged(f"Reading {name}")}
    _tell_holdout_apart(datamodule, looked, parts)
    looked.leaks = leaks(parts)
    return looked


def _content(images: Any, place: Mapping[str, int], key: str) -> bytes:
    return images.content(place[key])


def _note(
    looked: Looked, parts: dict[str, list[Facts]], name: str, paths: list[str], facts: list[Facts], named: bool = True
) -> None:
    """Notes what was found out about the images of a set."""
    found = looked.sets[name]
    found["odd"] = oddities(paths, facts, named)
    found["damaged"] = {path: one.wrong for path, one in zip(paths, facts, strict=True) if one.wrong is not None}
    found["formats"] = dict(Counter(one.format for one in facts if one.wrong is None).most_common())
    looked.paths[name], parts[name] = paths, facts


def _tell_holdout_apart(datamodule: RobustnessData, looked: Looked, parts: dict[str, list[Facts]]) -> None:
    """What is held out is no longer trained on, and must not be in what is."""
    trained = next(iter(datamodule.parts()))
    if trained not in parts or datamodule.holdout == 0:
        return
    try:
        train, held = datamodule.split
    except UserError:  # too many are held out: no matter here
        return
    paths, facts = looked.paths.pop(trained), parts.pop(trained)
    if trained in looked.read:
        looked.read["holdout"] = looked.read[trained]
    for name, positions in ((trained, train), ("holdout", held)):
        looked.paths[name] = [paths[i] for i in positions.tolist()]
        parts[name] = [facts[i] for i in positions.tolist()]
    for name in [name for name in looked.sets if name in parts and name != trained]:  # in their order, those first
        looked.paths[name], parts[name] = looked.paths.pop(name), parts.pop(name)
    if _is_val_and_holdout(looked):
        looked.paths.pop("holdout"), parts.pop("holdout")


def _is_val_and_holdout(looked: Looked) -> bool:
    """One and the same images, by a protocol that says so."""
    held = set(looked.paths["holdout"])
    return any(held == set(paths) for name, paths in looked.paths.items() if name != "holdout")


def remarks(looked: Looked) -> list[str]:
    """What is no error and should be known: leaks, skew, oddities; a line each."""
    lines = []
    for (later, earlier), pairs in looked.leaks.items():
        same = sum(pair.distance is None for pair in pairs)
        named = [looked.paths[later][pair.ours] for pair in pairs]
        kinds = f"{same} the same file, {len(pairs) - same} nearly the same"
        images = counted(len(pairs), "image")
        lines.append(f"LEAK: {images} of {later} in {earlier} too ({kinds}): {some(named, LISTED)}")
    for name, found in looked.sets.items():
        if found["odd"]:
            listed = [f"{path} ({what})" for path, what in found["odd"].items()]
            lines.append(f"{name}: {counted(len(listed), 'odd image')}: {some(listed, LISTED)}")
        if (found["skew"] or 0) >= SKEWED:
            lines.append(f"{name}: its largest class has {found['skew']:.3g} times the images of its smallest")
        if len(found["formats"]) > 1:
            lines.append(f"{name}: {', '.join(f'{count:,} {kind}' for kind, count in found['formats'].items())}")
    copies = [name for name, found in looked.sets.items() if found["path"] and name not in looked.paths]
    if copies:
        lines.append(
            f"Not compared with other sets, since prepared copies were read: {some(copies, LISTED)}. With"
            " data.prepared=false check=data looks at the files"
        )
    if looked.paths and not can_hash():
        lines.append(f"Compared file by file; to find near duplicates too: {install('check')}")
    return lines


def shown_pairs(looked: Looked, most: int) -> list[tuple[str, str, str, str, int | None]]:
    """(set, path, set, path, bits that differ) of leaks, at most so many of each two sets."""
    return [
        (later, looked.paths[later][pair.ours], earlier, looked.paths[earlier][pair.theirs], pair.distance)
        for (later, earlier), pairs in looked.leaks.items()
        for pair in _first(pairs, most)
    ]


def _first(pairs: Sequence[Pair], most: int) -> Sequence[Pair]:
    """The same files last: those that are nearly the same want to be looked at."""
    return sorted(pairs, key=lambda pair: (pair.distance is None, pair.distance or 0))[:most]
