"""Under which conditions do masks help? OOD at matched ID around one recipe; plan.md says what is asked and tested.

python experiments/when_masks_help/study.py
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import DictConfig

from robustft.common.files import write
from robustft.evaluation.summary import percent
from robustft.report.stats import Difference, ood_at_matched_id, paired_difference
from robustft.report.tradeoff import cells
from robustft.studies.main import main
from robustft.studies.store import Results
from robustft.studies.study import Entry

SEEDS, DRAW = range(11, 16), 1
METRICS = "metrics.csv"
BETAS = (0.3, 1.0)  # of masked runs
CURVE = (0.1, 0.3, 1.0, 3.0)  # of the runs without a mask that they are compared with
GROUPS = {
    "all shifts": ("scenes_v2", "scenes_r", "scenes_sketch", "scenes_objectnet", "scenes_a"),
    "contexts": ("scenes_objectnet", "scenes_a"),
    "styles": ("scenes_r", "scenes_sketch"),
    "V2": ("scenes_v2",),
}

# What changes the curve too: settings of the data and of the length of training.
BASE = "base"
CONDITIONS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "correlation 0.7": ("data.correlation=0.7",),
    "correlation 0.99": ("data.correlation=0.99",),
    "2 epochs": ("trainer.max_epochs=2",),
    "12 epochs": ("trainer.max_epochs=12",),
    "500 images": ("data.train_images=2500",),
    "6,000 images": ("data.train_images=8000",),
}
# What does not: how it is masked and filled.
OURS = "object, single-fill"
SYSTEMS: dict[str, tuple[str, ...]] = {
    OURS: ("mask=object", "fill=single"),
    "object, no-fill": ("mask=object", "fill=none"),
    "object, multi-fill": ("mask=object", "fill=multi"),
    "random, single-fill": ("mask=random", "fill=single"),
    "random, no-fill": ("mask=random", "fill=none"),
    "random, as much as object": ("mask=random", "fill=single", "mask.rate=0.11"),
    "context, single-fill": ("mask=context", "fill=single"),
    "threshold 0.05": ("mask=object", "fill=single", "mask.threshold=0.05"),
    "threshold 0.1": ("mask=object", "fill=single", "mask.threshold=0.1"),
    "threshold 0.5": ("mask=object", "fill=single", "mask.threshold=0.5"),
    "map of the teacher": ("mask=object", "fill=single", "mask.source=teacher"),
    "true object": ("mask=object", "fill=single", "mask.source=truth"),
}


@dataclass(frozen=True)
class Cell:
    """A masked system under a condition, at the values of β that make its number."""

    system: str = OURS
    condition: str = BASE
    betas: tuple[float, ...] = BETAS


CELLS = {
    **{system: Cell(system) for system in SYSTEMS},
    **{condition: Cell(condition=condition) for condition in CONDITIONS if condition != BASE},
    **{f"β = {beta:g}": Cell(betas=(beta,)) for beta in CURVE},
    "true object, correlation 0.7": Cell("true object", "correlation 0.7"),
    "true object, correlation 0.99": Cell("true object", "correlation 0.99"),
    "12 epochs, β = 0.1": Cell(condition="12 epochs", betas=(0.1,)),
}
PRIMARY: dict[str, tuple[str, str | None, str, str | None]] = {  # a cell, minus another; a group, minus another
    "1. masking beats no masking": (OURS, None, "all shifts", None),
    "2. refilling beats not refilling": (OURS, "object, no-fill", "all shifts", None),
    "3. object masks beat random ones": (OURS, "random, single-fill", "all shifts", None),
    "4. object masks beat context masks": (OURS, "context, single-fill", "all shifts", None),
    "5. the gain is largest in unusual contexts": (OURS, None, "contexts", "styles"),
}


def run_of(system: str, condition: str, beta: float, seed: int) -> str:
    words = "_".join(part.replace(", ", "-").replace(",", "").replace(" ", "-") for part in (system, condition))
    return f"{words}_beta-{beta:g}_seed-{seed}"


def entries(_: DictConfig) -> Iterator[Entry]:
    yield Entry("zeroshot", ("method=zeroshot", f"data.data_seed={DRAW}"))
    for seed in SEEDS:
        for condition in CONDITIONS:
            for beta in betas_of_curve(condition):
                yield entry("no mask", ("mask=none",), condition, beta, seed)
        seen = set()
        for cell in CELLS.values():
            for beta in cell.betas:
                if (one := (cell.system, cell.condition, beta)) not in seen:
                    seen.add(one)
                    yield entry(cell.system, SYSTEMS[cell.system], cell.condition, beta, seed)


def betas_of_curve(condition: str) -> Sequence[float]:
    """As far as masked runs of a condition need them."""
    needed = min(beta for cell in CELLS.values() if cell.condition == condition for beta in cell.betas)
    return [beta for beta in CURVE if beta >= needed]


def entry(system: str, masked: tuple[str, ...], condition: str, beta: float, seed: int) -> Entry:
    settings = (
        *masked,
        *CONDITIONS[condition],
        f"beta={beta:g}",
        f"seed={seed}",
        f"data.data_seed={DRAW}",
        "logger=csv",
    )
    kept = system == OURS and beta == 1 and seed == SEEDS[0]  # for how well their maps find the object
    return Entry(run_of(system, condition, beta, seed), (*settings, "logger=csv"), keep=kept, also=METRICS)


# What comes out

Outcome = dict[int, float]  # by seed


def ood(record: Mapping[str, Any], group: str) -> float:
    return mean(record["ood"][name]["top1"] for name in GROUPS[group])


def above_the_curve(results: Results, cell: Cell, group: str, seed: int) -> float:
    """OOD of a masked system minus that of no mask at equal ID, mean over its β; the curve's ends go on level."""
    points = [results[run_of("no mask", cell.condition, beta, seed)] for beta in betas_of_curve(cell.condition)]
    ids, oods = [point["id"]["top1"] for point in points], [ood(point, group) for point in points]
    differences = []
    for beta in cell.betas:
        record = results[run_of(cell.system, cell.condition, beta, seed)]
        at = min(max(record["id"]["top1"], min(ids)), max(ids))
        there = ood_at_matched_id(ids, oods, at)
        assert there is not None  # `at` is within the curve
        differences.append(ood(record, group) - there)
    return mean(differences)


def outside(results: Results, cell: Cell) -> int:
    """How many of a cell's runs have an ID outside of their curve."""
    count = 0
    for seed in SEEDS:
        ids = [
            results[run_of("no mask", cell.condition, beta, seed)]["id"]["top1"]
            for beta in betas_of_curve(cell.condition)
        ]
        runs = (results[run_of(cell.system, cell.condition, beta, seed)] for beta in cell.betas)
        count += sum(not min(ids) <= run["id"]["top1"] <= max(ids) for run in runs)
    return count


def outcomes(results: Results, cell: Cell, group: str) -> Outcome:
    return {seed: above_the_curve(results, cell, group, seed) for seed in SEEDS}


def difference(first: Outcome, second: Outcome | None = None) -> Difference:
    found = paired_difference(first, second or dict.fromkeys(first, 0.0))
    assert found is not None
    return found


def primary(results: Results) -> list[tuple[str, Difference, float]]:
    """Each conclusion's contrast, and its p after Holm's correction."""
    found = []
    for name, (cell, other, group, minus) in PRIMARY.items():
        ours, base = outcomes(results, CELLS[cell], group), None
        if other or minus:
            base = outcomes(results, CELLS[other or cell], minus or group)
        found.append((name, difference(ours, base)))
    corrected = holm([one.p for _, one in found])
    return [(name, one, p) for (name, one), p in zip(found, corrected, strict=True)]


def holm(values: Sequence[float | None]) -> list[float]:
    """Correct p values for their number (Holm, 1979), in their order."""
    order = sorted(range(len(values)), key=lambda place: values[place] or 0.0)
    corrected, worst = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, (values[place] or 0.0) * (len(values) - rank)))
        corrected[place] = worst
    return corrected


def summarise(folder: Path, results: Results) -> None:
    """primary.md and conditions.md, once every run is there."""
    if not all(one.name in results for one in entries(DictConfig({}))):
        return
    rows = ["| conclusion | Δ OOD at matched ID [95%] | p | p, Holm |", "|---|---:|---:|---:|"]
    for name, found, p in primary(results):
        change, raw = cells(found)
        rows.append(f"| {name} | {change} | {raw} | {p:.3f} |")
    write(folder / "primary.md", "\n".join(rows) + "\n")
    write(folder / "conditions.md", conditions(results))


def conditions(results: Results) -> str:
    """A row for each cell: what it gains at matched ID on each group of sets, and what may explain it."""
    shown = list(GROUPS)
    rows = [
        f"| masked, against no mask under the same condition | {' | '.join(f'{name} [95%]' for name in shown)}"
        " | masked share | distance on x_cf | outside |",
        "|---|" + "---:|" * (len(shown) + 3),
    ]
    for name, cell in CELLS.items():
        changes = [cells(difference(outcomes(results, cell, group)))[0] for group in shown]
        share, distance = (measured(results, cell, column) for column in ("masked", "distance"))
        rows.append(
            f"| {name} | {' | '.join(changes)} | {percent(share(mean))}% | {distance(last):.4f} |"
            f" {outside(results, cell) or ''} |"
        )
    return "\n".join(rows) + "\n"


def last(values: Sequence[float]) -> float:
    """Of the last quarter of training."""
    return mean(values[-max(1, len(values) // 4) :])


def measured(results: Results, cell: Cell, what: str) -> Callable[[Callable[[Sequence[float]], float]], float]:
    """What was logged in training of a cell's runs, summarised by a function of one run's values; mean over runs."""
    import csv
    import io

    runs = [results[run_of(cell.system, cell.condition, beta, seed)] for seed in SEEDS for beta in cell.betas]
    logged = []
    for run in runs:
        rows = list(csv.DictReader(io.StringIO(run["files"][METRICS])))
        column = next(name for name in rows[0] if name.rpartition("/")[2] == what)
        logged.append([float(row[column]) for row in rows if row[column]])
    return lambda summary: mean(summary(values) for values in logged)


if __name__ == "__main__":
    main(__file__, entries, summarise)
