"""Curves over α for vanilla fine-tuning and for the counterfactual model; the WiSE-FT model as teacher.

    python experiments/weight_space/study.py

Conclusions 5 and 6 of the paper: averaging the weights of the zero-shot and the counterfactual model gains little,
unlike WiSE-FT on vanilla fine-tuning; taking the WiSE-FT model as teacher improves the result slightly.
"""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from robustft.common.files import write
from robustft.report.stats import paired_difference
from robustft.report.tradeoff import Curve, cells, markdown, match
from robustft.studies.main import main, tables
from robustft.studies.store import Results
from robustft.studies.study import Entry

SEEDS = range(1, 6)
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PLACES = (0, *ALPHAS, 1)  # of the points of a curve
ENDS = {"vanilla": ("method=finetune",), "counterfactual": ("mask=object", "fill=single")}


def entries(cfg: DictConfig) -> Iterator[Entry]:
    yield Entry("zeroshot", ("method=zeroshot",))
    for seed in SEEDS:
        here = f"seed={seed}"
        for name, settings in ENDS.items():
            end = f"{name}_seed-{seed}"
            yield Entry(end, (*settings, here), keep=True)
            for alpha in ALPHAS:
                keep = name == "vanilla" and alpha == 0.5
                settings = ("method=wiseft", f"checkpoint={{{end}}}", f"alpha={alpha}", here)
                yield Entry(f"wise_{name}_alpha-{alpha}_seed-{seed}", settings, keep=keep)
        teacher = f"teacher={{wise_vanilla_alpha-0.5_seed-{seed}}}"
        yield Entry(f"counterfactual_wise-teacher_seed-{seed}", (*ENDS["counterfactual"], teacher, here))


def summarise(folder: Path, results: Results) -> None:
    """comparison.md and scatter.png with the curves over α; verdict.md: the two conclusions, paired by seed."""
    tables(folder, results, baselines=["vanilla_seed-1"])

    def point(name: str) -> tuple[float, float]:
        return results[name]["id"]["top1"], results[name]["ood_avg"]

    curves = {
        name: {
            seed: [
                point("zeroshot"),
                *(point(f"wise_{name}_alpha-{alpha}_seed-{seed}") for alpha in ALPHAS),
                point(f"{name}_seed-{seed}"),
            ]
            for seed in SEEDS
        }
        for name in ENDS
    }
    text = "# Curves over α from 0 to 1: OOD at matched ID\n\n" + markdown(match(curves), "vanilla")
    text += "\n# Conclusion 5: what averaging gains over its own end (α = 1)\n\n" + HEAD
    ends = {name: [curve[-1] for curve in by_seed.values()] for name, by_seed in curves.items()}
    halves = {name: [curve[PLACES.index(0.5)] for curve in by_seed.values()] for name, by_seed in curves.items()}
    for name in ENDS:
        text += row(f"{name}, α = 0.5", halves[name], ends[name])
    gain = {name: [(h[0] - e[0], h[1] - e[1]) for h, e in zip(halves[name], ends[name], strict=True)] for name in ENDS}
    text += row("the first gain minus the second", gain["vanilla"], gain["counterfactual"])
    for name in ENDS:
        alpha = chosen(name, results)
        place = PLACES.index(alpha)
        text += row(
            f"{name}, α = {alpha}, chosen on the hold-out", [c[place] for c in curves[name].values()], ends[name]
        )
    text += "\n# Conclusion 6: the WiSE-FT model as teacher, minus the zero-shot model as teacher\n\n" + HEAD
    ours = [point(f"counterfactual_wise-teacher_seed-{seed}") for seed in SEEDS]
    text += row("object, single-fill", ours, [point(f"counterfactual_seed-{seed}") for seed in SEEDS])
    text += row("… minus its teacher, WiSE-FT", ours, [point(f"wise_vanilla_alpha-0.5_seed-{seed}") for seed in SEEDS])
    write(folder / "verdict.md", text)


def chosen(name: str, results: Results) -> float:
    """The α (short of 1) with the highest mean hold-out accuracy."""

    def score(alpha: float) -> float:
        return sum(results[f"wise_{name}_alpha-{alpha}_seed-{seed}"]["holdout"]["top1"] for seed in SEEDS)

    return max(ALPHAS, key=score)


HEAD = "| | ID [95% interval] | p | OOD avg [95% interval] | p |\n|---|---:|---:|---:|---:|\n"


def row(label: str, ours: Curve, theirs: Curve) -> str:
    """Differences of (ID, OOD) points of the same seeds."""
    shown: list[str] = []
    for k in (0, 1):
        one, other = ({seed: points[seed][k] for seed in range(len(points))} for points in (ours, theirs))
        shown += cells(paired_difference(one, other))
    return f"| {label} | {' | '.join(shown)} |\n"


if __name__ == "__main__":
    main(__file__, entries, summarise)
