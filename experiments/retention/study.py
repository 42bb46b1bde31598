"""What fine-tuning makes the model forget: two tasks that no training asks for, on the embedded benchmark.

    python experiments/retention/study.py

The place and the style of a scene, told by the image tower before and after, with the text tower that it came with.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

from omegaconf import DictConfig

from robustft.common.files import write
from robustft.evaluation.summary import percent, signed
from robustft.report.stats import paired_difference
from robustft.studies.main import main
from robustft.studies.store import Results
from robustft.studies.study import Entry

SEEDS = range(1, 6)
TRAINED = {"vanilla": ("method=finetune",), "counterfactual": ("mask=object", "fill=single")}
LABELS = {
    "zeroshot": "zero-shot",
    "vanilla": "vanilla fine-tuning",
    "counterfactual": "object mask, single-fill",
    "wiseft": "WiSE-FT, α = 0.5",
}


def entries(_: DictConfig) -> Iterator[Entry]:
    yield Entry("zeroshot", ("method=zeroshot",))
    for seed in SEEDS:
        here = f"seed={seed}"
        for name, settings in TRAINED.items():
            yield Entry(f"{name}_seed-{seed}", (*settings, here), keep=name == "vanilla")
        model = f"checkpoint={{vanilla_seed-{seed}}}"
        yield Entry(f"wiseft_seed-{seed}", ("method=wiseft", model, "alpha=0.5", here))


def summarise(folder: Path, results: Results) -> None:
    """retention.md: ID, OOD and both tasks; what is forgotten of each, with the 95% interval over seeds."""
    write(folder / "retention.md", table(results))


def table(results: Results) -> str:
    tasks = list(results["zeroshot"]["retention"])
    head = ["system", "ID", "OOD avg", *tasks, *(f"Δ {task} [95%]" for task in tasks)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    lines += [[label, *row(results, name, tasks)] for name, label in LABELS.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def row(results: Results, name: str, tasks: list[str]) -> list[str]:
    zeroshot = results["zeroshot"]
    if name == "zeroshot":
        known = [percent(zeroshot["retention"][task]["top1"]) for task in tasks]
        return [percent(zeroshot["id"]["top1"]), percent(zeroshot["ood_avg"]), *known, *["–"] * len(tasks)]
    of = {seed: results[f"{name}_seed-{seed}"] for seed in SEEDS}
    scores = [[each["id"]["top1"] for each in of.values()], [each["ood_avg"] for each in of.values()]]
    scores += [[each["retention"][task]["top1"] for each in of.values()] for task in tasks]
    cells = [f"{percent(mean(values))} ± {percent(stdev(values))}" for values in scores]
    for task in tasks:
        before = dict.fromkeys(SEEDS, zeroshot["retention"][task]["top1"])
        found = paired_difference({seed: each["retention"][task]["top1"] for seed, each in of.items()}, before)
        assert found is not None and found.low is not None and found.high is not None
        cells.append(f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]")
    return cells


if __name__ == "__main__":
    main(__file__, entries, summarise)
