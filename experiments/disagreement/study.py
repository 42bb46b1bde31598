"""MSE(f̂, f) on factual images and on every kind of counterfactual through training: why refilling matters.

    python experiments/disagreement/study.py

Five ways to train, three seeds. Eleven times through each training student and teacher are compared on the same 200
held-out images, as they are and under random (rate 0.5), context and object masks (threshold 0.3) with every fill.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from robustft.common.files import write
from robustft.evaluation.disagreement import FILE, KINDS, parse
from robustft.report.schema1 import FILLS, MASKS
from robustft.report.stats import mean_std, paired_difference
from robustft.studies.main import main
from robustft.studies.store import Results
from robustft.studies.study import Entry

SEEDS = range(1, 4)
TIMES = 10
MASKS_SEEN = ("random", "context", "object")
TRAINED = {
    "vanilla fine-tuning": ("method=finetune",),
    "distillation, no mask": ("mask=none",),
    "object mask, no-fill": ("mask=object", "fill=none"),
    "object mask, single-fill": ("mask=object", "fill=single"),
    "object mask, multi-fill": ("mask=object", "fill=multi"),
}


def entries(cfg: DictConfig) -> Iterator[Entry]:
    for seed in SEEDS:
        for name, settings in TRAINED.items():
            yield Entry(run_of(name, seed), (*settings, f"seed={seed}", f"disagreement={TIMES}"), also=FILE)


def run_of(name: str, seed: int) -> str:
    return f"{name.replace(', ', '_').replace(' ', '-')}_seed-{seed}"


def summarise(folder: Path, results: Results) -> None:
    """disagreement.md (.csv) at the end of training, and curves.png (.svg)."""
    rows = {
        name: [parse(results[run_of(name, seed)]["files"][FILE]) for seed in SEEDS] for name in TRAINED
    }  # by training, then seed: step → a value for each kind
    write(folder / "disagreement.md", table(rows))
    lines = [",".join(("training", "seed", "step", *KINDS))]
    for name, by_seed in rows.items():
        for seed, measured in zip(SEEDS, by_seed, strict=True):
            values = ((step, *row) for step, row in measured.items())
            lines += [f'"{name}",{seed},{",".join(f"{value:.6g}" for value in line)}' for line in values]
    write(folder / "disagreement.csv", "\n".join(lines) + "\n")
    draw(rows, folder)


def table(rows: dict[str, list[dict[int, list[float]]]]) -> str:
    """Disagreement at the end of training; and what refilling adds to it, paired by seed."""
    last = {name: np.array([measured[max(measured)] for measured in by_seed]) for name, by_seed in rows.items()}
    scale = 1 / last["vanilla fine-tuning"][:, 0].mean()  # factual images, vanilla
    lines = [
        "At the end of training, MSE(f̂, f) in units of that of vanilla fine-tuning on factual images "
        f"({1 / scale:.3g}); mean ± standard deviation over {len(SEEDS)} seeds.",
        "",
        f"| seen on | {' | '.join(rows)} |",
        f"|---|{'---:|' * len(rows)}",
    ]
    for kind, seen in enumerate(KINDS):
        cells = [mean_std(list(last[name][:, kind] * scale)) for name in rows]
        lines.append(f"| {titled(seen)} | {' | '.join(f'{mean:.2f} ± {std or 0:.2f}' for mean, std in cells)} |")
    lines += [
        "",
        "What refilling changes, in the same units: disagreement on refilled images minus that on images masked alike",
        "but not refilled, paired by seed, with 95% t intervals.",
        "",
        f"| seen on | {' | '.join(rows)} |",
        f"|---|{'---:|' * len(rows)}",
    ]
    for mask in MASKS_SEEN:
        for fill in ("single", "multi"):
            cells = []
            for name in rows:
                ours, none = (last[name][:, KINDS.index(f"{mask}_{kind}")] * scale for kind in (fill, "none"))
                found = paired_difference(dict(enumerate(ours)), dict(enumerate(none)))
                assert found is not None
                low, high = found.low or found.mean, found.high or found.mean
                cells.append(f"{found.mean:+.2f} [{low:+.2f}, {high:+.2f}]")
            lines.append(f"| {mask} mask, {fill}-fill | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def titled(kind: str) -> str:
    mask, _, fill = kind.partition("_")
    return "factual images" if not fill else f"{mask} mask, {'no' if fill == 'none' else fill}-fill"


def draw(rows: dict[str, list[dict[int, list[float]]]], folder: Path) -> None:
    """One panel for each way to train, one curve for each kind of image; the band is the range over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(rows), 4.2), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True)
    for ax, (name, by_seed) in zip(panels, rows.items(), strict=True):
        steps = sorted(set.intersection(*(set(measured) for measured in by_seed)))
        values = np.array([[measured[step] for step in steps] for measured in by_seed])  # seed, step, kind
        for number, kind in enumerate(KINDS):
            mask, _, fill = kind.partition("_")
            colour, marker = (MASKS[mask], FILLS[fill]) if fill else ("#000000", "*")
            ax.fill_between(
                steps, values[..., number].min(0), values[..., number].max(0), color=colour, alpha=0.12, lw=0
            )
            ax.plot(steps, values[..., number].mean(0), marker, ls="-" if fill != "none" else ":", color=colour,
                    ms=4, lw=1.2, label=titled(kind))  # fmt: skip
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("optimiser step")
        ax.grid(alpha=0.25)
    panels[0].set_ylabel("MSE(f̂, f) on held-out images")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False
    )
    for suffix in ("png", "svg"):
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(folder / f"curves.{suffix}", dpi=150, metadata=metadata)


if __name__ == "__main__":
    main(__file__, entries, summarise)
