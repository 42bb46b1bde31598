"""Images that two sets share, or nearly share: what is trained on must not be reported on.

Near means that two 64-bit perceptual hashes differ in at most 4 bits. The hashes are cut into 5 bands: of two that
differ in 4 bits at most, one band at least is the same in both, so only images that share a band are compared.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from robustft.data.facts import Facts

DISTANCE = 4  # bits
WIDTHS = (13, 13, 13, 13, 12)  # of the bands


class Pair(NamedTuple):
    """An image of one set and its like in another.

    Attributes:
        distance: bits in which their hashes differ; None: they are the same file.
    """

    ours: int
    theirs: int
    distance: int | None


def pairs_between(ours: Sequence[Facts], theirs: Sequence[Facts]) -> list[Pair]:
    """For each image of `ours` its like among `theirs`: the same file, else the nearest within 4 bits."""
    known = {one.digest: place for place, one in reversed(list(enumerate(theirs))) if one.digest}
    pairs = [Pair(i, known[one.digest], None) for i, one in enumerate(ours) if one.digest in known]
    same = {pair.ours for pair in pairs}
    left = [i for i, one in enumerate(ours) if one.hash is not None and i not in same]
    against = [i for i, one in enumerate(theirs) if one.hash is not None]
    here, there = _hashes(ours, left), _hashes(theirs, against)
    pairs += [Pair(left[i], against[j], distance) for i, j, distance in nearest(here, there)]
    return sorted(pairs)


def nearest(ours: Int64[np.ndarray, " ours"], theirs: Int64[np.ndarray, " theirs"]) -> list[tuple[int, int, int]]:
    """(position in ours, position in theirs, bits that differ) of those with a like, the nearest one."""
    best: dict[int, tuple[int, int]] = {}
    shift = 0
    for width in WIDTHS:
        mask = (1 << width) - 1
        mine, other = (ours >> shift) & mask, (theirs >> shift) & mask
        order = np.argsort(other, kind="stable")
        first, last = (np.searchsorted(other[order], mine, side) for side in ("left", "right"))
        for i in (last > first).nonzero()[0].tolist():
            candidates = order[first[i] : last[i]]
            differ = np.bitwise_count((theirs[candidates] ^ ours[i]).view(np.uint64))
            at = int(differ.argmin())
            if differ[at] <= DISTANCE:
                best[i] = min(best.get(i, (DISTANCE + 1, 0)), (int(differ[at]), int(candidates[at])))
        shift += width
    return [(i, place, distance) for i, (distance, place) in sorted(best.items())]


def leaks(parts: Mapping[str, Sequence[Facts]]) -> dict[tuple[str, str], list[Pair]]:
    """The likes of each part's images in every part that stands before it, by the names of the two."""
    found, names = {}, list(parts)
    for number, later in enumerate(names):
        for earlier in names[:number]:
            if pairs := pairs_between(parts[later], parts[earlier]):
                found[later, earlier] = pairs
    return found


def _hashes(facts: Sequence[Facts], chosen: Sequence[int]) -> Int64[np.ndarray, " chosen"]:
    return np.array([facts[i].hash or 0 for i in chosen], np.uint64).view(np.int64)
