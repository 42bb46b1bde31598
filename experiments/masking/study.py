"""Mask × fill × {rates, thresholds} of the paper, and β curves of the best setting of each cell.

    python experiments/masking/study.py

First the whole grid at the recipe's β with three seeds; then, for the setting of each cell with the best hold-out
accuracy, a β curve with five seeds, because at one β the cells are held back to different degrees. Conclusions 1-3
of the paper are tested by OOD at matched ID over these curves.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from robustft.report.__main__ import main as report
from robustft.report.tradeoff import markdown, match
from robustft.study import Entry, Results, main

GRID_SEEDS, CURVE_SEEDS = range(1, 4), range(1, 6)
FACTORS = (0.3, 1, 3)  # of the recipe's β
RATES, THRESHOLDS = (0.25, 0.5, 0.75), (0.3, 0.4, 0.5, 0.6)
CELLS = [(mask, fill) for mask in ("random", "context", "object") for fill in ("none", "single", "multi")]


def grid(mask: str, fill: str) -> dict[str, tuple[str, ...]]:
    """The settings of a cell, by name."""
    dial, values = ("rate", RATES) if mask == "random" else ("threshold", THRESHOLDS)
    return {
        f"{mask}_{fill}_{dial}-{value}": (f"mask={mask}", f"fill={fill}", f"mask.{dial}={value}") for value in values
    }


def entries(cfg: DictConfig) -> Iterator[Entry]:
    yield Entry("zeroshot", ("method=zeroshot",))
    for seed in CURVE_SEEDS:
        yield Entry(f"vanilla_seed-{seed}", ("method=finetune", f"seed={seed}"))
    cells = {"none": {"none": ("mask=none",)}} | {f"{mask}_{fill}": grid(mask, fill) for mask, fill in CELLS}
    for cell in cells.values():
        for name, settings in cell.items():
            for seed in GRID_SEEDS:
                yield Entry(f"{name}_seed-{seed}", (*settings, f"seed={seed}"))
    for cell in cells.values():
        best = best_setting(list(cell))
        if best is None:
            continue  # the grid of this cell comes first
        for seed in CURVE_SEEDS:
            for factor in FACTORS:
                known = factor == 1 and seed in GRID_SEEDS
                if not known:
                    settings = (*cell[best], f"seed={seed}", f"beta={cfg.beta * factor:g}")
                    yield Entry(f"curve_{best}_beta-x{factor}_seed-{seed}", settings)


def best_setting(names: list[str]) -> str | None:
    """The setting with the highest mean hold-out accuracy over the grid's seeds; None while one is missing."""
    folder = Path(__file__).parent / "results"
    scores = {}
    for name in names:
        files = [folder / f"{name}_seed-{seed}.json" for seed in GRID_SEEDS]
        if not all(file.exists() for file in files):
            return None
        scores[name] = sum(json.loads(file.read_text())["holdout"]["top1"] for file in files)
    return max(scores, key=lambda name: scores[name])


def summarise(folder: Path, results: Results) -> None:
    """comparison.md and scatter.png of the grid; curves.md: OOD at matched ID of the cells' β curves."""
    shown = [str(folder / "results" / f"{name}.json") for name in results if not name.startswith("curve")]
    report([*shown, "--out", str(folder), "--baseline", "vanilla"])

    def point(name: str) -> tuple[float, float]:
        return results[name]["id"]["top1"], results[name]["ood_avg"]

    curves = {}
    cells = {"none": ["none"]} | {f"{mask}_{fill}": list(grid(mask, fill)) for mask, fill in CELLS}
    for names in cells.values():
        best = best_setting(names)
        if best is None or f"curve_{best}_beta-x{FACTORS[0]}_seed-1" not in results:
            continue
        curves[best] = {
            seed: [
                point(f"vanilla_seed-{seed}"),
                *(
                    point(f"{best}_seed-{seed}" if factor == 1 and seed in GRID_SEEDS
                          else f"curve_{best}_beta-x{factor}_seed-{seed}")
                    for factor in FACTORS
                ),
            ]
            for seed in CURVE_SEEDS
        }  # fmt: skip
    if len(curves) > 1:
        (folder / "curves.md").write_text(markdown(match(curves), "none"))


if __name__ == "__main__":
    main(__file__, entries, summarise)
