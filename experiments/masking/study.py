"""Mask × fill × {rates, thresholds} of the paper, and β curves of the best setting of each cell.

    python experiments/masking/study.py

First the whole grid at the recipe's β with three seeds; then, for the setting of each cell with the best hold-out
accuracy, a β curve with five seeds, because at one β the cells are held back to different degrees. Conclusions 1-3
of the paper are tested by OOD at matched ID over these curves, conclusion 4 set by set.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean

from omegaconf import DictConfig

from robustft.common.errors import UserError
from robustft.common.files import write
from robustft.evaluation.summary import set_label
from robustft.report.runs import Record
from robustft.report.stats import Difference
from robustft.report.tradeoff import Curve, cells, contrast
from robustft.studies.main import main, tables
from robustft.studies.store import Results
from robustft.studies.study import Entry

GRID_SEEDS, CURVE_SEEDS = range(1, 4), range(1, 6)
FACTORS = (0.3, 1, 3)  # of the recipe's β
RATES, THRESHOLDS = (0.25, 0.5, 0.75), (0.3, 0.4, 0.5, 0.6)
MASKS, FILLS = ("random", "context", "object"), {"no-fill": "none", "single-fill": "single", "multi-fill": "multi"}
NO_MASK, OBJECT_SINGLE = "no mask", "object, single-fill"
Score = Callable[[Record], float]


def ood_avg(record: Record) -> float:
    return record["ood_avg"]


def settings_of(mask: str, fill: str) -> dict[str, tuple[str, ...]]:
    """The settings of a cell, by name."""
    dial, values = ("rate", RATES) if mask == "random" else ("threshold", THRESHOLDS)
    return {
        f"{mask}_{fill}_{dial}-{value}": (f"mask={mask}", f"fill={fill}", f"mask.{dial}={value}") for value in values
    }


CELLS = {NO_MASK: {"none": ("mask=none",)}} | {
    f"{mask}, {name}": settings_of(mask, fill) for mask in MASKS for name, fill in FILLS.items()
}


def grid(cfg: DictConfig) -> Iterator[Entry]:
    if cfg.data.holdout == 0:
        raise UserError("data.holdout=0: the curves' settings are chosen on the hold-out. Leave it to its default")
    yield Entry("zeroshot", ("method=zeroshot",))
    for seed in CURVE_SEEDS:
        yield Entry(f"vanilla_seed-{seed}", ("method=finetune", f"seed={seed}"))
    for cell in CELLS.values():
        for name, settings in cell.items():
            for seed in GRID_SEEDS:
                yield Entry(f"{name}_seed-{seed}", (*settings, f"seed={seed}"))


def curves(cfg: DictConfig, results: Results) -> Iterator[Entry]:
    for cell in CELLS.values():
        best = best_setting(cell, results)
        for seed in CURVE_SEEDS:
            for factor in FACTORS:
                if (name := point_name(best, factor, seed)) not in results:
                    yield Entry(name, (*cell[best], f"seed={seed}", f"beta={cfg.beta * factor:g}"))


def best_setting(cell: dict[str, tuple[str, ...]], results: Results) -> str:
    """The setting with the highest mean hold-out accuracy over the grid's seeds."""
    return max(cell, key=lambda name: sum(results[f"{name}_seed-{seed}"]["holdout"]["top1"] for seed in GRID_SEEDS))


def point_name(setting: str, factor: float, seed: int) -> str:
    """The run that is this point of a curve; at the recipe's β the grid has some already."""
    if factor == 1 and seed in GRID_SEEDS:
        return f"{setting}_seed-{seed}"
    return f"curve_{setting}_beta-x{factor}_seed-{seed}"


def curve(cell: str, seed: int, results: Results, score: Score) -> Curve:
    """ID accuracy and ``score`` at each β.

    Without β = 0: ID accuracy does not fall steadily from there, and a curve that folds back has no OOD at an ID.
    """
    best = best_setting(CELLS[cell], results)
    points = [results[point_name(best, factor, seed)] for factor in FACTORS]
    return [(record["id"]["top1"], score(record)) for record in points]


def compare(pairs: Sequence[tuple[str, str]], results: Results, score: Score = ood_avg) -> Difference | None:
    """Cells minus other cells at matched ID."""
    compared = {cell for pair in pairs for cell in pair}
    return contrast(
        {cell: {seed: curve(cell, seed, results, score) for seed in CURVE_SEEDS} for cell in compared}, pairs
    )


def summarise(folder: Path, results: Results) -> None:
    """comparison.md and scatter.png of the grid; verdict.md: the paper's conclusions at matched ID."""
    tables(folder, results, baselines=["vanilla_seed-1"], leave_out="curve")
    text = "# β curves from 0.3 to 3 times the recipe's against no mask, over the ID range that the two share\n\n"
    text += HEAD.format("OOD avg at matched ID")
    for cell in CELLS:
        if cell != NO_MASK:
            setting = best_setting(CELLS[cell], results).split("_")[-1].replace("-", " ")
            text += row(f"{cell} ({setting})", compare([(cell, NO_MASK)], results))
    text += "\n# The paper's conclusions 1–3, each pair of cells over the ID range that its curves share\n\n"
    text += HEAD.format("OOD avg at matched ID")
    for label, pairs in claims():
        text += row(label, compare(pairs, results))
    text += f"\n# Conclusion 4: {OBJECT_SINGLE} minus {NO_MASK} by shift, at matched ID\n\n" + HEAD.format("accuracy")
    pair = [(OBJECT_SINGLE, NO_MASK)]
    unusual = ("scenes_objectnet", "scenes_a", "objectnet", "imagenet_a")
    for name in results["zeroshot"]["ood"]:
        found = compare(pair, results, lambda record, name=name: record["ood"][name]["top1"])
        text += row(set_label(name), found)

    def excess(record: Record) -> float:
        values = {True: [], False: []}
        for name, one in record["ood"].items():
            values[name in unusual].append(one["top1"])
        return mean(values[True]) - mean(values[False])

    text += row("mean of ObjectNet and A minus mean of the others", compare(pair, results, excess))
    write(folder / "verdict.md", text)


HEAD = "| | {} [95% interval] | p | seeds |\n|---|---:|---:|---:|\n"


def row(label: str, found: Difference | None) -> str:
    return f"| {label} | {' | '.join(cells(found))} | {0 if found is None else found.n} |\n"


def claims() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """What each of the conclusions says is above what, pair by pair."""
    yield "1: masks (mean of nine cells) above none", [(cell, NO_MASK) for cell in CELLS if cell != NO_MASK]
    yield f"1: {OBJECT_SINGLE} above {NO_MASK}", [(OBJECT_SINGLE, NO_MASK)]
    for mask in MASKS:
        filled = [(f"{mask}, {fill}", f"{mask}, no-fill") for fill in ("single-fill", "multi-fill")]
        yield f"2: {mask}, refilled (mean of two) above no-fill", filled
    for other in ("random", "context"):
        yield f"3: object above {other} (mean of fills)", [(f"object, {fill}", f"{other}, {fill}") for fill in FILLS]
        yield f"3: {OBJECT_SINGLE} above {other}, single-fill", [(OBJECT_SINGLE, f"{other}, single-fill")]


if __name__ == "__main__":
    main(__file__, grid, summarise, curves)
