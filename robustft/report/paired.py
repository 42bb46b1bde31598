"""Differences of two systems image by image, from the predictions that every run leaves.

Two models evaluated on the same images differ by chance only where one is right and the other is wrong: the standard
error of such a difference is that of McNemar's test, and far below that of two sets of images.
"""

import csv
import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from robustft.common.errors import UserError
from robustft.evaluation.summary import set_label, signed
from robustft.report.groups import Group
from robustft.report.runs import Run

LONGEST_LINE = 2**16  # characters
FILE = "predictions.csv.gz"  # see robustft/evaluation/predictions.py
NORMAL = 1.96  # of 95%
OOD = "ood_avg"
NOTE = "Differences in points, paired image by image, with 95% intervals for the draw of images (not of seeds)."


@dataclass(frozen=True)
class ImageDifference:
    """Mean difference of top-1 over the images of a set (fractions), its standard error, and how many images."""

    mean: float
    error: float
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        return self.mean - NORMAL * self.error, self.mean + NORMAL * self.error


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> ImageDifference:
    """Compare two systems on a set: the mean over images of (how often ours is right − how often theirs is).

    Of one run each the standard error is √(n₁₀ + n₀₁ − (n₁₀ − n₀₁)²/n)/n, n₁₀ images that ours alone gets right, n₀₁
    that theirs alone does. Of several seeds an image counts by its mean over them.

    Args:
        ours: for each run whether it is right (0 or 1), an entry an image, images in one order.
        theirs: likewise.
    """
    change = np.mean(ours, 0) - np.mean(theirs, 0)
    n = len(change)
    return ImageDifference(float(change.mean()), float(np.sqrt(change.var() / n)), n)


def differences(ours: Group, theirs: Group) -> dict[str, ImageDifference]:
    """By set, and under "ood_avg" of the plain mean over the shifts, whose images are drawn independently.

    Raises:
        UserError: a run lacks its predictions, or they are of other images.
    """
    mine, others = ([_right(run) for run in group.runs] for group in (ours, theirs))
    (first, where), id_name = mine[0], ours.record["id"]["name"]
    found: dict[str, ImageDifference] = {}
    for name in (id_name, *ours.record["ood"]):
        for read, path in (*mine, *others):
            if name not in read or not np.array_equal(read[name][0], first[name][0]):
                raise UserError(
                    f"{path}: its images of {name} are not those of {where}. Evaluate both on the same data"
                )
        found[name] = difference(*([read[name][1] for read, _ in runs] for runs in (mine, others)))
    if shifts := [found[name] for name in ours.record["ood"]]:
        error = math.sqrt(sum(one.error**2 for one in shifts)) / len(shifts)
        average = sum(one.mean for one in shifts) / len(shifts)
        found[OOD] = ImageDifference(average, error, sum(one.images for one in shifts))
    return found


def markdown(groups: Sequence[Group], base: Group, title: str) -> str:
    """The differences to one system of a panel, of all that have predictions beside their results.

    Raises:
        UserError: ``base`` lacks its predictions, or nothing can be compared with it.
    """
    for run in base.runs:
        _right(run)
    rows = [group for group in groups if group is not base and all(map(_has_predictions, group.runs))]
    if not rows:
        raise UserError(f"--paired: no other run of {title} has its {FILE} beside its results")
    names = [base.record["id"]["name"], OOD, *base.record["ood"]]
    heads = ["OOD avg" if name == OOD else set_label(name) for name in names]
    lines = [
        f"### {title}: top-1 minus that of {base.label}, image by image",
        "",
        f"| system | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
    ]
    for group in rows:
        found = differences(group, base)
        cells = [_cell(found[name]) if name in found else "–" for name in names]
        lines.append(f"| {group.label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(found: ImageDifference) -> str:
    low, high = found.interval
    return f"{signed(found.mean)} [{signed(low)}, {signed(high)}]"


def _has_predictions(run: Run) -> bool:
    """Whether its own lie beside its results: a zero-shot model that another run tells of has none (and no seed)."""
    return run.record["seed"] is not None and run.path.name == "results.json" and (run.path.parent / FILE).is_file()


def _right(run: Run) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], Path]:
    """(images, whether each is right) by set, and the file."""
    path = run.path.parent / FILE
    if not _has_predictions(run):
        raise UserError(f"--paired: {path} is missing. It lies beside the results.json of a run")
    return _read(path), path


def _lines(file: Any) -> Iterator[str]:
    """The lines of a file, one in memory at a time; a file that unpacks without end has one that has none."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError("a line in it has no end")
        yield line


@cache
def _read(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every set's images in alphabetical order, and whether each is predicted right.

    Raises:
        UserError: it is no file of predictions.
    """
    parts: dict[str, list[tuple[str, int]]] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(_lines(file)):
                parts.setdefault(row["set"], []).append((row["image"], int(row["correct"])))
    except (OSError, EOFError, KeyError, ValueError, TypeError, zlib.error, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}). Expected the predictions that a run leaves") from error
    found = {}
    for name, rows in parts.items():
        images, right = zip(*sorted(rows), strict=True)
        found[name] = np.array(images), np.array(right, dtype=np.int8)
    return found
