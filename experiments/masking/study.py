"""Mask × fill × {rates, thresholds} of the paper, and β curves of the best setting of each cell.

    python experiments/masking/study.py

First the whole grid at the recipe's β with three seeds; then, for the setting of each cell with the best hold-out
accuracy, a β curve with five seeds, because at one β the cells are held back to different degrees. Conclusions 1-3
of the paper are tested by OOD at matched ID over these curves, conclusion 4 set by set.
"""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from robustft.evaluation.results import set_label
from robustft.files import write
from robustft.report.__main__ import main as report
from robustft.report.stats import paired_difference
from robustft.report.tradeoff import Curve, cells, markdown, match
from robustft.study import Entry, Results, main

GRID_SEEDS, CURVE_SEEDS = range(1, 4), range(1, 6)
FACTORS = (0.3, 1, 3)  # of the recipe's β
RATES, THRESHOLDS = (0.25, 0.5, 0.75), (0.3, 0.4, 0.5, 0.6)
MASKS, FILLS = ("random", "context", "object"), {"no-fill": "none", "single-fill": "single", "multi-fill": "multi"}
NO_MASK = "no mask"


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


def curve(cell: str, seed: int, results: Results) -> Curve:
    """From β = 0 upwards."""
    best = best_setting(CELLS[cell], results)
    names = [f"vanilla_seed-{seed}", *(point_name(best, factor, seed) for factor in FACTORS)]
    return [(results[name]["id"]["top1"], results[name]["ood_avg"]) for name in names]


def summarise(folder: Path, results: Results) -> None:
    """comparison.md and scatter.png of the grid; verdict.md: the paper's conclusions at matched ID."""
    shown = [str(folder / "results" / f"{name}.json") for name in results if not name.startswith("curve")]
    partial = ["--partial"] if any(record["partial"] for record in results.values()) else []
    report([*shown, *partial, "--out", str(folder), "--baseline", "vanilla_seed-1"])
    every = {
        f"{cell} ({best_setting(CELLS[cell], results).split('_')[-1]})" if cell != NO_MASK else cell: {
            seed: curve(cell, seed, results) for seed in CURVE_SEEDS
        }
        for cell in CELLS
    }
    text = "# OOD at matched ID, whole β curves from 0 to 3 times the recipe's\n\n" + markdown(match(every), NO_MASK)
    text += "\n# The paper's conclusions 1–3, each pair over the ID range that its own curves share\n\n"
    text += "| | OOD avg at matched ID [95% interval] | p |\n|---|---:|---:|\n"
    for label, names, bases in claims():
        matched = match({cell: {seed: curve(cell, seed, results) for seed in CURVE_SEEDS} for cell in (*names, *bases)})
        text += f"| {label} | {' | '.join(cells(matched.contrast(names, bases)))} |\n"
    text += "\n# Conclusion 4: what each shift gains over vanilla fine-tuning, at the recipe's β\n\n"
    write(folder / "verdict.md", text + gains(results))


def claims() -> Iterator[tuple[str, list[str], list[str]]]:
    """What each of the conclusions says is above what."""
    object_single = "object, single-fill"
    yield "1: masks (mean of nine) above none", [cell for cell in CELLS if cell != NO_MASK], [NO_MASK]
    yield f"1: {object_single} above {NO_MASK}", [object_single], [NO_MASK]
    for mask in MASKS:
        filled = [f"{mask}, {fill}" for fill in ("single-fill", "multi-fill")]
        yield f"2: {mask}, refilled (mean of two) above no-fill", filled, [f"{mask}, no-fill"]
    for other in ("random", "context"):
        ours, theirs = ([f"{mask}, {fill}" for fill in FILLS] for mask in ("object", other))
        yield f"3: object above {other} (mean of fills)", ours, theirs
        yield f"3: {object_single} above {other}, single-fill", [object_single], [f"{other}, single-fill"]


def gains(results: Results) -> str:
    """Accuracy of object, single-fill minus vanilla fine-tuning and minus no mask, by set."""
    best = best_setting(CELLS["object, single-fill"], results)
    systems = {
        "vanilla": {seed: results[f"vanilla_seed-{seed}"] for seed in CURVE_SEEDS},
        NO_MASK: {seed: results[point_name("none", 1, seed)] for seed in CURVE_SEEDS},
    }
    ours = {seed: results[point_name(best, 1, seed)] for seed in CURVE_SEEDS}
    lines = [f"| set | {best} minus vanilla | p | minus {NO_MASK} | p |", "|---|---:|---:|---:|---:|"]
    for name in results["zeroshot"]["ood"]:
        shown = []
        for base in systems.values():
            one, other = ({seed: run["ood"][name]["top1"] for seed, run in runs.items()} for runs in (ours, base))
            shown += cells(paired_difference(one, other))
        lines.append(f"| {set_label(name)} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(__file__, grid, summarise, curves)
