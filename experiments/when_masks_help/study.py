"""Under which conditions do masks help? OOD at matched ID around one recipe; plan.md says what is asked and tested.

python experiments/when_masks_help/study.py --jobs 2
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from omegaconf import DictConfig

from robustft.common.files import write
from robustft.evaluation.summary import percent
from robustft.report.forest import forest
from robustft.report.stats import Difference, holm, ood_at_matched_id, paired_difference
from robustft.studies.main import main
from robustft.studies.store import Results
from robustft.studies.study import Entry

SEEDS = range(11, 18)
FEW = SEEDS[:5]  # of all that is not a primary test
METRICS = "metrics.csv"
BETAS = (0.3, 1.0)  # of masked runs
CURVE = (0.1, 0.3, 1.0, 3.0)  # of the runs without a mask that they are compared with
PLACEBO = 0.55  # a run without a mask that is no point of the curve
STEPS = 310  # of the base
GROUPS = {
    "all shifts": ("scenes_v2", "scenes_r", "scenes_sketch", "scenes_objectnet", "scenes_a"),
    "without V2": ("scenes_r", "scenes_sketch", "scenes_objectnet", "scenes_a"),
    "contexts": ("scenes_objectnet", "scenes_a"),
    "styles": ("scenes_r", "scenes_sketch"),
}
ALL, SAME = "all shifts", "without V2"  # of the primary tests; of sets that no condition changes
ENOUGH = 0.005  # a gain that matters, as a fraction
UNMATCHED = 0.2  # of a cell's runs outside of their curves: no verdict

# What changes the curve too: settings of the data and of the length of training.
BASE = "base"
BY_STEPS = ("trainer.max_epochs=null", f"trainer.max_steps={STEPS}")
CONDITIONS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "correlation 0.7": ("data.correlation=0.7",),
    "correlation 0.99": ("data.correlation=0.99",),
    "2 epochs": ("trainer.max_epochs=2",),
    "12 epochs": ("trainer.max_epochs=12",),
    "500 images": ("data.train_images=2500", *BY_STEPS),
    "6,000 images": ("data.train_images=8000", *BY_STEPS),
}
# What does not: how it is masked and filled.
NONE = "no mask"
OURS = "object, single-fill"
SYSTEMS: dict[str, tuple[str, ...]] = {
    OURS: ("mask=object", "fill=single"),
    "object, no-fill": ("mask=object", "fill=none"),
    "random, single-fill": ("mask=random", "fill=single"),
    "random, as much as object": ("mask=random", "fill=single", "mask.rate=0.11"),
    "context, single-fill": ("mask=context", "fill=single"),
    "context, threshold 0.05": ("mask=context", "fill=single", "mask.threshold=0.05"),
    "object, threshold 0.05": ("mask=object", "fill=single", "mask.threshold=0.05"),
    "object, threshold 0.1": ("mask=object", "fill=single", "mask.threshold=0.1"),
    "map of the teacher": ("mask=object", "fill=single", "mask.source=teacher"),
    "true object, threshold 0.5": ("mask=object", "fill=single", "mask.source=truth", "mask.threshold=0.5"),
}


@dataclass(frozen=True)
class Cell:
    """A system under a condition, at the values of β that make its number."""

    system: str = OURS
    condition: str = BASE
    betas: tuple[float, ...] = BETAS

    @property
    def seeds(self) -> Sequence[int]:
        return SEEDS if self.condition == BASE and self.system in TESTED else FEW


# What is tested: a cell, minus another; on a group of sets, minus on another.
Contrast = tuple[str, str | None, str, str | None]
PRIMARY: dict[str, Contrast] = {
    "1. masking beats no masking": (OURS, None, ALL, None),
    "2. refilling beats not refilling": (OURS, "object, no-fill", ALL, None),
    "3. object masks beat random ones": (OURS, "random, single-fill", ALL, None),
    "4. object masks beat context masks": (OURS, "context, single-fill", ALL, None),
    "5. the gain is largest in unusual contexts": (OURS, None, "contexts", "styles"),
}
TESTED = {NONE, *(cell for first, second, _, _ in PRIMARY.values() for cell in (first, second))}
CELLS = {
    "no mask, β = 0.55 (placebo)": Cell(NONE, betas=(PLACEBO,)),
    **{system: Cell(system) for system in SYSTEMS},
    **{condition: Cell(condition=condition) for condition in CONDITIONS if condition != BASE},
    **{f"β = {beta:g}": Cell(betas=(beta,)) for beta in CURVE[:3]},
    "12 epochs, β = 0.1": Cell(condition="12 epochs", betas=(0.1,)),
    **{
        f"{system}, {condition}": Cell(system, condition)
        for system in ("object, threshold 0.1", "true object, threshold 0.5")
        for condition in ("correlation 0.7", "correlation 0.99")
    },
}
# Explored: the same masked share with another kind of mask or another map.
EXPLORED: dict[str, Contrast] = {
    "3, at 11% of the patches": (OURS, "random, as much as object", ALL, None),
    "3, at half of the patches": ("object, threshold 0.05", "random, single-fill", ALL, None),
    "4, at half of the patches": ("object, threshold 0.05", "context, threshold 0.05", ALL, None),
    "the true object above the student's map, at 30%": (
        "true object, threshold 0.5",
        "object, threshold 0.1",
        ALL,
        None,
    ),
    "the teacher's map above the student's": ("map of the teacher", OURS, ALL, None),
    **{
        f"{level}, above the base": (level, OURS, SAME, None)
        for level in (
            *(condition for condition in CONDITIONS if condition != BASE),
            "object, threshold 0.05",
            "object, threshold 0.1",
        )
    },
    "β = 0.1 above β = 1": ("β = 0.1", "β = 1", ALL, None),
}
# Two differences, the first minus the second: does one factor change what the other does?
INTERACTIONS: dict[str, tuple[Contrast, Contrast]] = {
    "true object above the student's map: at correlation 0.99, minus at 0.7": (
        ("true object, threshold 0.5, correlation 0.99", "object, threshold 0.1, correlation 0.99", SAME, None),
        ("true object, threshold 0.5, correlation 0.7", "object, threshold 0.1, correlation 0.7", SAME, None),
    ),
    "β = 0.1 above β = 0.3 and 1: of 12 epochs, minus of 5": (
        ("12 epochs, β = 0.1", "12 epochs", ALL, None),
        ("β = 0.1", OURS, ALL, None),
    ),
}


def run_of(system: str, condition: str, beta: float, seed: int) -> str:
    words = "_".join(part.replace(", ", "-").replace(",", "").replace(" ", "-") for part in (system, condition))
    return f"{words}_beta-{beta:g}_seed-{seed}"


def entries(_: DictConfig) -> Iterator[Entry]:
    seen = set()
    for seed in SEEDS:
        curves = [Cell(NONE, condition, CURVE) for condition in CONDITIONS]
        for cell in (*curves, *CELLS.values()):
            for beta in cell.betas:
                one = (cell.system, cell.condition, beta, seed)
                if seed in cell.seeds and one not in seen:
                    seen.add(one)
                    yield entry(*one)


def entry(system: str, condition: str, beta: float, seed: int) -> Entry:
    settings = (
        *SYSTEMS.get(system, ("mask=none",)),
        *CONDITIONS[condition],
        f"beta={beta:g}",
        f"seed={seed}",
        f"data.data_seed={draw_of(seed)}",
        "logger=csv",
        *(("disagreement=1",) if beta == 1 and seed in FEW else ()),
    )
    kept = system == OURS and beta == 1 and seed == SEEDS[0]  # for how well their maps find the object
    return Entry(run_of(system, condition, beta, seed), settings, keep=kept, also=METRICS)


def draw_of(seed: int) -> int:
    """Other images for every seed: intervals are about images, too."""
    return seed - 9


# What comes out

Outcome = dict[int, float]  # by seed
Estimate = Callable[[Results, Cell, str], Outcome]


def ood(record: Mapping[str, Any], group: str) -> float:
    return mean(record["ood"][name]["top1"] for name in GROUPS[group])


def points(results: Results, condition: str, group: str, seed: int) -> list[tuple[float, float]]:
    """ID and OOD of the runs without a mask, over β."""
    runs = [results[run_of(NONE, condition, beta, seed)] for beta in CURVE]
    return [(run["id"]["top1"], ood(run, group)) for run in runs]


def above_the_curve(results: Results, cell: Cell, group: str) -> Outcome:
    """OOD minus that of no mask at equal ID, mean over β.

    The curve of a condition is a parabola in ID, one for all seeds, which is moved up or down for each: straight lines
    between four points of a bent curve would lie below it, and everything between the points above them.
    """
    seeds = Cell(NONE, cell.condition).seeds
    data = [(seed, x, y) for seed in seeds for x, y in points(results, cell.condition, group, seed)]
    of_seed, x, y = (np.array(column) for column in zip(*data, strict=True))
    shift = x.mean()
    columns = [of_seed == seed for seed in seeds] + [x - shift, (x - shift) ** 2]
    *levels, slope, bend = np.linalg.lstsq(np.stack(columns, 1).astype(float), y, rcond=None)[0]
    level = dict(zip(seeds, levels, strict=True))

    def gain(seed: int, beta: float) -> float:
        run = results[run_of(cell.system, cell.condition, beta, seed)]
        at = run["id"]["top1"] - shift
        return float(ood(run, group) - (level[seed] + slope * at + bend * at**2))

    return {seed: mean(gain(seed, beta) for beta in cell.betas) for seed in cell.seeds}


def above_the_chords(results: Results, cell: Cell, group: str) -> Outcome:
    """The same by straight lines between each seed's own points, the ends of which go on level."""

    def gain(seed: int, beta: float) -> float:
        ids, oods = zip(*points(results, cell.condition, group, seed), strict=True)
        run = results[run_of(cell.system, cell.condition, beta, seed)]
        there = ood_at_matched_id(ids, oods, min(max(run["id"]["top1"], min(ids)), max(ids)))
        assert there is not None
        return ood(run, group) - there

    return {seed: mean(gain(seed, beta) for beta in cell.betas) for seed in cell.seeds}


def outside(results: Results, cell: Cell) -> float:
    """Which share of a cell's runs has an ID outside of the curve of its seed."""
    found = []
    for seed in cell.seeds:
        ids = [x for x, _ in points(results, cell.condition, ALL, seed)]
        runs = (results[run_of(cell.system, cell.condition, beta, seed)] for beta in cell.betas)
        found += [not min(ids) <= run["id"]["top1"] <= max(ids) for run in runs]
    return mean(found)


def contrast(results: Results, wanted: Contrast, estimate: Estimate = above_the_curve) -> Outcome:
    """By seed; of the seeds that both cells have."""
    cell, other, group, minus = wanted
    ours = estimate(results, CELLS[cell], group)
    if other is None and minus is None:
        return ours
    base = estimate(results, CELLS[other or cell], minus or group)
    return {seed: ours[seed] - base[seed] for seed in ours if seed in base}


def difference(outcome: Outcome) -> Difference:
    found = paired_difference({**outcome}, dict.fromkeys(outcome, 0.0))
    assert found is not None
    return found


def primary(results: Results) -> list[tuple[str, Difference, float]]:
    """Each conclusion's contrast, and its p after Holm's correction."""
    found = [(name, difference(contrast(results, wanted))) for name, wanted in PRIMARY.items()]
    corrected = holm([one.p for _, one in found if one.p is not None])
    return [(name, one, p) for (name, one), p in zip(found, corrected, strict=True)]


def verdict(found: Difference, unmatched: float = 0.0) -> str:
    """What an interval says of a gain."""
    assert found.low is not None and found.high is not None
    if unmatched > UNMATCHED:
        return "not matched"
    if found.low > 0:
        return "helps"
    if found.high < 0:
        return "hurts"
    return "less than 0.5" if found.high < ENOUGH else "undecided"


# Pages


def summarise(folder: Path, results: Results) -> None:
    """primary.md, conditions.md and forest.png, once every run is there."""
    if not all(one.name in results for one in entries(DictConfig({}))):
        return
    write(folder / "primary.md", tests(results))
    write(folder / "conditions.md", conditions(results) + "\n" + explanations(results))
    picture(folder / "forest.png", results)


def interval(found: Difference) -> str:
    """In points, with two decimals: bounds are compared with 0 and 0.5."""
    assert found.low is not None and found.high is not None
    return f"{_points(found.mean)} [{_points(found.low)}, {_points(found.high)}]"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")


def tests(results: Results) -> str:
    """The primary tests, what was explored, and the interactions."""
    rows = ["| conclusion | Δ OOD at matched ID [95%] | p | p, Holm | by straight lines | verdict |"]
    rows.append("|---|---:|---:|---:|---:|---|")
    for name, found, p in primary(results):
        lines = difference(contrast(results, PRIMARY[name], above_the_chords))
        said = "holds" if p < 0.05 and found.mean > 0 else "the opposite" if p < 0.05 else "not shown"
        rows.append(f"| {name} | {interval(found)} | {found.p:.3f} | {p:.3f} | {interval(lines)} | {said} |")
    rows += ["", "Explored, not corrected:", "", "| | Δ OOD at matched ID [95%] | seeds |", "|---|---:|---:|"]
    explored = {name: contrast(results, wanted) for name, wanted in EXPLORED.items()}
    for name, (first, second) in INTERACTIONS.items():
        one, other = contrast(results, first), contrast(results, second)
        explored[name] = {seed: one[seed] - other[seed] for seed in one if seed in other}
    rows += [f"| {name} | {interval(difference(found))} | {len(found)} |" for name, found in explored.items()]
    return "\n".join(rows) + "\n"


def conditions(results: Results) -> str:
    """A row for each cell: what it gains at matched ID on each group of sets, and the verdict on those without V2."""
    shown = list(GROUPS)
    rows = [
        f"| against no mask under the same condition | {' | '.join(f'{name} [95%]' for name in shown)}"
        " | contexts − styles [95%] | outside | verdict |",
        "|---|" + "---:|" * (len(shown) + 2) + "---|",
    ]
    for name, cell in CELLS.items():
        found = {group: difference(above_the_curve(results, cell, group)) for group in shown}
        beyond = outside(results, cell)
        between = difference(contrast(results, (name, None, "contexts", "styles")))
        changes = " | ".join(interval(one) for one in (*found.values(), between))
        rows.append(f"| {name} | {changes} | {beyond:.0%} | {verdict(found[SAME], beyond)} |")
    return "\n".join(rows) + "\n"


def explanations(results: Results) -> str:
    """What was measured in training, of the runs at β = 1: means over seeds, at the end but for the masked share."""
    rows = [
        "| at β = 1 | masked share | MSE of features on its own x_cf | on x | on object, single-fill |",
        "|---|---:|---:|---:|---:|",
    ]
    cells = {f"no mask, {condition}": Cell(NONE, condition, (1.0,)) for condition in CONDITIONS}
    cells |= {name: replace(cell, betas=(1.0,)) for name, cell in CELLS.items() if 1.0 in cell.betas}
    for name, cell in cells.items():
        seeds = [seed for seed in cell.seeds if seed in FEW]
        runs = [results[run_of(cell.system, cell.condition, 1.0, seed)] for seed in seeds]
        share = "–" if cell.system == NONE else f"{percent(mean(mean(logged(run, 'masked')) for run in runs))}%"
        ends = [mean(last(logged(run, what)) for run in runs) for what in ("distance", "factual", "object_single")]
        rows.append(f"| {name} | {share} | {' | '.join(f'{value:.4f}' for value in ends)} |")
    return "\n".join(rows) + "\n"


def last(values: Sequence[float]) -> float:
    """Of the last quarter of what was logged, at least the last one."""
    return mean(values[-max(1, len(values) // 4) :])


def logged(run: Mapping[str, Any], what: str) -> list[float]:
    """A column of what a run logged in training."""
    rows = list(csv.DictReader(io.StringIO(run["files"][METRICS])))
    column = next(name for name in rows[0] if name.rpartition("/")[2] == what)
    return [float(row[column]) for row in rows if row[column]]


def picture(file: Path, results: Results) -> None:
    """Draw every cell's gain with its interval: on unusual contexts and on styles."""
    gains = {
        group: {name: difference(above_the_curve(results, cell, group)) for name, cell in CELLS.items()}
        for group in ("contexts", "styles")
    }
    what = "OOD top-1 above no mask at equal ID, points; 95% intervals"
    forest(file, gains, what=what, title="When do masks help?", noise=ENOUGH)


if __name__ == "__main__":
    main(__file__, entries, summarise)
