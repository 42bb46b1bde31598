"""The gap to the WiSE-FT curve at equal ID: what a method gains over averaging vanilla with zero-shot weights.

WiSE-FT (Wortsman et al., CVPR 2022) costs no training, so a method is worth its name where it lies above that curve. It
needs no reference models from outside, as effective robustness does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

from robustft.common.errors import UserError
from robustft.report.groups import Group
from robustft.report.runs import Run
from robustft.report.table import find_baseline

METHOD = "wiseft"
VANILLA = ("vanilla fine-tuning", "vanilla")  # as `find_baseline` knows it
NOTE = (
    "gap to WiSE: OOD average above the best that WiSE-FT of vanilla fine-tuning has at no less ID accuracy, in points;"
    " † where it never reaches that ID: above its OOD at its highest ID."
)

COARSEST = 0.25  # step of α. The curve is bent: straight lines over longer ones lie points below it, and flatter

Point = tuple[float, float]  # ID, OOD average


@dataclass(frozen=True)
class Gap:
    """How far above the curve a model is (a fraction), and whether it is beyond the curve's highest ID."""

    ood: float
    beyond: bool


def gap(model: Point, curve: Sequence[Point]) -> Gap:
    """OOD of ``model`` minus the largest OOD on ``curve`` among points of no less ID.

    Where there are none it is compared with the curve's point of highest ID (of several the one of highest OOD).

    Args:
        curve: points in the order of α, joined by straight lines; one or more.

    Example:
        >>> gap((0.80, 0.65), [(0.70, 0.60), (0.82, 0.62), (0.84, 0.50)])
        Gap(ood=0.03, beyond=False)
    """
    top1, ood = model
    reached = [y for x, y in curve if x >= top1]
    for (x0, y0), (x1, y1) in pairwise(curve):
        if min(x0, x1) < top1 <= max(x0, x1):  # on a straight line the largest is at an end, or where it gets there
            reached.append(y0 + (y1 - y0) * (top1 - x0) / (x1 - x0))
    best = max(reached) if reached else max(curve)[1]
    return Gap(round(ood - best, 12), not reached)


def curves(groups: Sequence[Group]) -> dict[int, list[Point]]:
    """The curve of vanilla fine-tuning of every seed: zero-shot, WiSE-FT of it by α, and the model itself.

    A WiSE-FT run is vanilla's where its checkpoint is called as a vanilla run's folder is, or where with α = 1 it has a
    vanilla run's scores. A seed has no curve where values of α are more than ``COARSEST`` apart.

    Args:
        groups: of one panel.
    """
    zeroshot = next((point for group in groups if group.reference for point in group.points()), None)
    base = _vanilla(groups)
    if zeroshot is None or base is None:
        return {}
    averages: dict[str, list[Run]] = {}
    for group in groups:
        for run in group.runs if group.record["method"] == METHOD else ():
            averages.setdefault(str(run.record["config"].get("checkpoint")), []).append(run)
    found: dict[int, list[Point]] = {}
    for run in base.runs:
        end = _point(run)
        own = [w for path, members in averages.items() if _is_of(path, members, run) for w in members]
        between = {w.record["alpha"]: p for w in own if 0 < w.record["alpha"] < 1 and (p := _point(w)) is not None}
        alphas = [0.0, *sorted(between), 1.0]
        fine = max(b - a for a, b in pairwise(alphas)) <= COARSEST + 1e-9
        if end is not None and fine:
            found[run.record["seed"]] = [zeroshot, *(between[alpha] for alpha in sorted(between)), end]
    return found


def gaps(group: Group, by_seed: Mapping[int, Sequence[Point]]) -> tuple[list[float], bool]:
    """The gap of each seed of a system, and whether any is beyond its curve.

    A run whose seed has no curve is compared with all of them, on average.
    """

    def of(run: Run) -> list[Gap]:
        seed, point = run.record["seed"], _point(run)
        own = [by_seed[seed]] if seed in by_seed else by_seed.values()
        return [] if point is None else [gap(point, curve) for curve in own]

    values = group.per_seed(lambda run: mean(one.ood for one in found) if (found := of(run)) else None)
    return values, any(one.beyond for run in group.runs for one in of(run))


def _vanilla(groups: Sequence[Group]) -> Group | None:
    """The vanilla system of a panel; None where there is none, or several."""
    for name in VANILLA:
        try:
            found = find_baseline(groups, name)
        except UserError:
            return None
        if found is not None:
            return found
    return None


def _is_of(path: str, averages: Sequence[Run], run: Run) -> bool:
    """Whether WiSE-FT runs are of the model that a run left."""
    checkpoint = Path(path)
    folder = checkpoint.parent.name if checkpoint.suffix else checkpoint.name
    if folder in (run.record.get("entry"), run.path.parent.name):
        return True
    return any(w.record["alpha"] == 1 and _point(w) == _point(run) for w in averages)


def _point(run: Run) -> Point | None:
    x, y = run.value("id"), run.value("ood_avg")
    return None if x is None or y is None else (x, y)
