"""What the embedded benchmark is to do, and what it does: the targets that it was made for.

    python experiments/targets/measure.py     # the zero-shot model: measured.json
    python experiments/targets/study.py       # fine-tuning; then all of it in targets.md

On draws of the images and on seeds that nothing else reports, and by zero-shot, vanilla fine-tuning and distillation
without masks alone: a benchmark that was chosen by a contrast between masks could not tell anything about masks.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import DictConfig

from robustft.common.files import write
from robustft.evaluation.summary import percent, set_label
from robustft.report.table import signed
from robustft.report.tradeoff import match
from robustft.studies.main import main
from robustft.studies.store import Results
from robustft.studies.study import Entry

HERE = Path(__file__).resolve().parent
CHOSEN, OTHER = 1000, 1001  # draws of the images: the one to choose by, and one to see whether it holds there
SEEDS = {CHOSEN: range(100, 105), OTHER: range(105, 110)}
BETAS = (1, 3, 10)
KD_BETAS = (0.03, 0.1, 0.3)
CURVES = {"features": BETAS, "logits": KD_BETAS}
SYSTEMS = {
    "vanilla": ("method=finetune",),
    **{f"features_beta-{beta}": ("mask=none", f"beta={beta}") for beta in BETAS},
    **{f"logits_beta-{beta}": ("method=kd", f"beta={beta}") for beta in KD_BETAS},
}
ON = {CHOSEN: tuple(SYSTEMS), OTHER: ("vanilla", "features_beta-3")}


def entries(_: DictConfig) -> Iterator[Entry]:
    for draw, seeds in SEEDS.items():
        here = f"data.data_seed={draw}"
        yield Entry(f"zeroshot_draw-{draw}", ("method=zeroshot", here))
        for seed in seeds:
            for system in ON[draw]:
                yield Entry(f"{system}_draw-{draw}_seed-{seed}", (*SYSTEMS[system], f"seed={seed}", here))


def summarise(folder: Path, results: Results) -> None:
    """targets.md: each target, and what is reached on each draw."""
    measured = json.loads((HERE / "measured.json").read_text("utf-8"))
    reached = [of_draw(draw, results, measured[str(draw)]) for draw in SEEDS]
    lines = [["target", "wanted", *(f"draw {draw}" for draw in SEEDS)], ["---", "---", *["---:"] * len(SEEDS)]]
    lines += [[target, wanted, *(each[target] for each in reached)] for target, wanted in TARGETS.items()]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n"
    write(folder / "targets.md", text + systems(results))


TARGETS = {
    "vanilla fine-tuning, ID over zero-shot": "+10 or more",
    "vanilla fine-tuning, OOD average over zero-shot": "−3 or less",
    "distillation without masks at its best β, OOD average over zero-shot": "+1 or more",
    "largest standard deviation over seeds of any system on any set": "2 or less",
    "relevance of the zero-shot model points at the object, ID": "70% or more",
    "the same, mean of all sets": "70% or more",
    "zero-shot accuracy, context": "70% to 95%",
    "zero-shot accuracy, style": "70% to 95%",
    "difference of OOD at matched ID that five seeds resolve": "small",
}


def of_draw(draw: int, results: Results, measured: dict[str, Any]) -> dict[str, str]:
    """What is reached of each of TARGETS."""
    zeroshot = results[f"zeroshot_draw-{draw}"]
    of = {system: [results[f"{system}_draw-{draw}_seed-{seed}"] for seed in SEEDS[draw]] for system in ON[draw]}

    def over_zeroshot(system: str, score: str) -> float:
        return mean(top1(record, score) for record in of[system]) - top1(zeroshot, score)

    plain = [system for system in of if system.startswith("features")]
    best = max(plain, key=lambda system: over_zeroshot(system, "ood_avg"))
    spreads = {
        (system, name): stdev(top1(record, name) for record in records)
        for system, records in of.items()
        for name in ("id", *zeroshot["ood"])
    }
    system, name = max(spreads, key=spreads.__getitem__)
    pointing = measured["pointing"]
    return dict(
        zip(
            TARGETS,
            (
                signed(over_zeroshot("vanilla", "id")),
                signed(over_zeroshot("vanilla", "ood_avg")),
                f"{signed(over_zeroshot(best, 'ood_avg'))} (β = {best.rpartition('-')[2]})",
                f"{percent(spreads[system, name])} ({called(system)}, {set_label(name)})",
                f"{percent(pointing['scenes'])}%",
                f"{percent(mean(pointing.values()))}%",
                f"{percent(measured['context'])}%",
                f"{percent(measured['style'])}%",
                resolved(results) if draw == CHOSEN else "–",
            ),
            strict=True,
        )
    )


def resolved(results: Results) -> str:
    """Half the 95% interval of the paired difference between the two distillations, at matched ID, in points."""

    def point(name: str) -> tuple[float, float]:
        return results[name]["id"]["top1"], results[name]["ood_avg"]

    curves = {
        curve: {
            seed: [point(f"{curve}_beta-{beta}_draw-{CHOSEN}_seed-{seed}") for beta in betas] for seed in SEEDS[CHOSEN]
        }
        for curve, betas in CURVES.items()
    }
    found = match(curves).difference(*CURVES)
    assert found is not None and found.high is not None and found.low is not None
    return percent((found.high - found.low) / 2, 2)


def top1(record: dict[str, Any], score: str) -> float:
    """In 0…1: on "id", on average over the shifts ("ood_avg"), on a shift set."""
    if score == "ood_avg":
        return record[score]
    return (record["id"] if score == "id" else record["ood"][score])["top1"]


def called(system: str) -> str:
    """A system's name in the table."""
    return system.replace("features", "distillation").replace("logits", "KD").replace("_beta-", ", β = ")


def systems(results: Results) -> str:
    """A table of every system on every set, mean ± standard deviation over seeds."""
    sets = list(results[f"zeroshot_draw-{next(iter(SEEDS))}"]["ood"])
    lines = [["system", "draw", "ID", "OOD avg", *map(set_label, sets)], ["---", *["---:"] * (3 + len(sets))]]
    for draw, seeds in SEEDS.items():
        lines.append(["zero-shot", str(draw)])
        lines[-1] += [percent(top1(results[f"zeroshot_draw-{draw}"], name)) for name in ("id", "ood_avg", *sets)]
        for system in ON[draw]:
            lines.append([called(system), str(draw)])
            for name in ("id", "ood_avg", *sets):
                values = [top1(results[f"{system}_draw-{draw}_seed-{seed}"], name) for seed in seeds]
                lines[-1].append(f"{percent(mean(values))} ± {percent(stdev(values))}")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main(__file__, entries, summarise)
