"""Curves over α for vanilla fine-tuning and for the counterfactual model; the WiSE-FT model as teacher.

    python experiments/weight_space/study.py

Conclusions 5 and 6 of the paper: averaging the weights of the zero-shot and the counterfactual model gains little,
unlike WiSE-FT on vanilla fine-tuning; taking the WiSE-FT model as teacher improves the result slightly.
"""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from robustft.report.__main__ import main as report
from robustft.report.tradeoff import markdown, match
from robustft.study import Entry, Results, main

SEEDS = range(1, 6)
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
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
    """comparison.md and scatter.png with the curves; curves.md: OOD at matched ID, and the two conclusions."""
    report([str(folder / "results" / "*.json"), "--out", str(folder)])

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
    lines = [markdown(match(curves), "vanilla"), "", "| gain of averaging | ID | OOD avg |", "|---|---:|---:|"]
    for name, by_seed in curves.items():
        gains = [max(curve, key=lambda p: p[0] + p[1]) for curve in by_seed.values()]
        ends = [curve[-1] for curve in by_seed.values()]
        change = [100 * sum(g[k] - e[k] for g, e in zip(gains, ends, strict=True)) / len(ends) for k in (0, 1)]
        lines.append(f"| best of {name} (ID + OOD) minus its end | {change[0]:+.1f} | {change[1]:+.1f} |")
    (folder / "curves.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(__file__, entries, summarise)
