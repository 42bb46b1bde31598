"""Every method under one protocol: recipe=common, the same small search for each, five seeds.

    python experiments/neighbours/study.py      # a first time: the search; a second time: the seeds that are reported

**Search.** Three values of each method's dial on seeds 100 and 101 and draw 1000 of the images, which no other number
here has. Taken is the value with the highest hold-out top-1, mean of the two seeds; of equals, the one that holds back
more. **Report.** Seeds 1 to 5, draw 0, at that value; for the methods in CURVES at all three.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import DictConfig

from robustft.common.files import write
from robustft.evaluation.summary import percent
from robustft.report.stats import paired_difference
from robustft.report.tradeoff import markdown, match
from robustft.studies import store
from robustft.studies.main import main, tables
from robustft.studies.store import Results
from robustft.studies.study import Entry

HERE = Path(__file__).resolve().parent
SEARCH_SEEDS, SEEDS, DRAW = (100, 101), range(1, 6), 1000
COMMON = "recipe=common"


@dataclass(frozen=True)
class System:
    """What is typed for a method.

    Attributes:
        dial: the setting that is searched; empty: it has none.
        values: of the dial, from the one that holds back least.
        of: how many vanilla models it works on; 0: it trains.
    """

    settings: tuple[str, ...]
    dial: str = ""
    values: tuple[float, ...] = ()
    of: int = 0

    def at(self, value: float | None) -> tuple[str, ...]:
        return self.settings if value is None else (*self.settings, f"{self.dial}={value:g}")


BETAS, ALPHAS = (0.3, 1, 3), (0.75, 0.5, 0.25)
OBJECT = ("mask=object", "fill=single")
SYSTEMS = {
    "vanilla": System(("method=finetune",)),
    "lpft": System(("method=lpft",)),
    "lora": System(("method=finetune", "train=lora"), "train.alpha", (64, 16, 4)),
    "averaged": System(("method=finetune", "moving=ema", "result=average")),
    "l2sp": System(("method=finetune", "constraint=l2sp"), "constraint.l2sp.weight", (0.05, 0.5, 5)),
    "l2sp-decoupled": System(
        ("method=finetune", "constraint=l2sp_decoupled"), "constraint.l2sp_decoupled.weight", (0.1, 1, 10)
    ),
    "spd": System(("method=finetune", "constraint=spd"), "constraint.spd.weight", (0.5, 1, 2)),
    "ftp": System(("method=finetune", "constraint=ftp"), "constraint.ftp.rate", (0.1, 0.01, 0.001)),
    "distillation": System(("mask=none",), "beta", BETAS),
    "kd": System(("method=kd",), "beta", (0.03, 0.1, 0.3)),
    "carft": System(("method=carft",), "beta", BETAS),
    "lipsum": System(("method=lipsum",), "beta", BETAS),
    "ldifs": System(("method=ldifs",), "beta", (1, 10, 100)),
    "flyp": System(("method=flyp",)),
    "flyp-class": System(("method=flyp", "method.positives=class")),
    "carot": System(("method=carot",), "method.weight", (0.5, 1.5, 4.5)),
    "tracer": System(("method=tracer",), "method.weight", (0.3, 0.9, 2.7)),
    "clipood": System(("method=clipood",), "method.margin", (0, 0.3, 1)),
    "counterfactual": System(OBJECT, "beta", BETAS),
    # Combinations that nobody has published.
    "distillation-trajectory": System(("mask=none", "moving=trajectory"), "beta", BETAS),
    "counterfactual-trajectory": System((*OBJECT, "moving=trajectory"), "beta", BETAS),
    "flyp-counterfactual": System(("method=flyp", *OBJECT), "beta", BETAS),
    "carot-counterfactual": System(("method=carot", *OBJECT), "method.weight", (0.5, 1.5, 4.5)),
    "tracer-counterfactual": System(("method=tracer", *OBJECT), "method.weight", (0.3, 0.9, 2.7)),
    # After training.
    "wiseft": System(("method=wiseft",), "alpha", ALPHAS, of=1),
    "lines": System(("method=lines",), "alpha", ALPHAS, of=1),
    "tpgm": System(("method=tpgm",), of=1),
    "model-stock": System(("method=model_stock",), of=2),
    "ose": System(("method=ose",), "alpha", ALPHAS, of=1),
    "vrf": System(("method=vrf",), of=1),
    "dawin": System(("method=dawin",), of=1),
}
CURVES = ("distillation", "kd", "counterfactual", "wiseft", "carot", "tracer")


def name(system: str, value: float | None, seed: int, searched: bool = False) -> str:
    """Of a run."""
    at = "" if value is None else f"_{SYSTEMS[system].dial.rpartition('.')[2]}-{value:g}"
    return f"{'search_' * searched}{system}{at}_seed-{seed}"


def entries(cfg: DictConfig) -> Iterator[Entry]:
    yield from search(cfg)
    results = store.read(HERE / store.FILE)
    if not all(entry.name in results for entry in search(cfg)):
        return
    yield Entry("zeroshot", ("method=zeroshot",))
    for seed in SEEDS:
        for system, made in SYSTEMS.items():
            values = made.values if system in CURVES else (chosen(system, results),)
            for value in values:
                yield entry(system, value, seed)


def search(_: DictConfig) -> Iterator[Entry]:
    """The runs that the dials are chosen by; vanilla fine-tuning, for those that work on its models."""
    for seed in SEARCH_SEEDS:
        yield entry("vanilla", None, seed, searched=True)
        for system, made in SYSTEMS.items():
            for value in made.values:
                yield entry(system, value, seed, searched=True)


def entry(system: str, value: float | None, seed: int, searched: bool = False) -> Entry:
    made = SYSTEMS[system]
    settings = (*made.at(value), f"seed={seed}")
    settings += (f"data.data_seed={DRAW}",) if searched else ()
    settings += () if made.of else (COMMON,)
    if made.of == 1:
        settings += (f"checkpoint={{{name('vanilla', None, seed, searched)}}}",)
    elif made.of:
        others = [name("vanilla", None, (seed + step) % len(SEEDS) + 1, searched) for step in range(-1, made.of - 1)]
        settings += (f"checkpoints=[{','.join(f'{{{other}}}' for other in others)}]",)
    return Entry(name(system, value, seed, searched), settings, keep=system == "vanilla")


def chosen(system: str, results: Results) -> float | None:
    """The value of a method's dial; None where it has none."""

    def holdout(value: float) -> float:
        return mean(results[name(system, value, seed, searched=True)]["holdout"]["top1"] for seed in SEARCH_SEEDS)

    values = SYSTEMS[system].values
    return max(reversed(values), key=holdout) if values else None


def summarise(folder: Path, results: Results) -> None:
    """search.md: the dials as far as they are searched; with all seeds comparison.md, the picture and matched.md."""
    write(folder / "search.md", searched(results))
    if "zeroshot" not in results or not all(entry.name in results for entry in entries(DictConfig({}))):
        return
    tables(folder, {key: value for key, value in results.items() if not key.startswith("search_")}, ["vanilla_seed-1"])
    write(folder / "matched.md", matched(results) + "\n" + differences(results))


def searched(results: Results) -> str:
    """A row for each dial: hold-out top-1 in %, mean of the two seeds, at each value; dashes: not run yet."""
    rows = ["| system | dial | value: hold-out top-1 | chosen |", "|---|---|---|---:|"]
    for system, made in SYSTEMS.items():
        names = {value: [name(system, value, seed, True) for seed in SEARCH_SEEDS] for value in made.values}
        if not made.values:
            continue
        tried = [
            f"{value:g}: "
            + (
                percent(mean(results[one]["holdout"]["top1"] for one in runs))
                if all(one in results for one in runs)
                else "–"
            )
            for value, runs in names.items()
        ]
        done = all(one in results for runs in names.values() for one in runs)
        taken = f"{chosen(system, results):g}" if done else "–"
        rows.append(f"| {system} | `{made.dial}` | {', '.join(tried)} | {taken} |")
    return "\n".join(rows) + "\n"


def point(record: dict[str, Any]) -> tuple[float, float]:
    return record["id"]["top1"], record["ood_avg"]


def matched(results: Results) -> str:
    curves = {
        system: {
            seed: [point(results[name(system, value, seed)]) for value in SYSTEMS[system].values] for seed in SEEDS
        }
        for system in CURVES
    }
    return markdown(match(curves), "wiseft")


def differences(results: Results) -> str:
    """OOD of every method minus vanilla's, paired by seed, with Holm's correction for their number."""
    found = {}
    base = {seed: results[name("vanilla", None, seed)]["ood_avg"] for seed in SEEDS}
    for system in SYSTEMS:
        value = chosen(system, results)
        ours = {seed: results[name(system, value, seed)]["ood_avg"] for seed in SEEDS}
        difference = paired_difference(ours, base) if system != "vanilla" else None
        if difference is not None and difference.p is not None:
            found[system] = difference
    rows = ["| system | Δ OOD to vanilla [95%] | p | p, Holm |", "|---|---:|---:|---:|"]
    worst = 0.0
    for place, (system, difference) in enumerate(sorted(found.items(), key=lambda item: item[1].p)):
        worst = max(worst, min(1.0, difference.p * (len(found) - place)))
        low, high = percent(difference.low), percent(difference.high)
        rows.append(f"| {system} | {percent(difference.mean)} [{low}, {high}] | {difference.p:.2g} | {worst:.2g} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main(__file__, entries, summarise)
