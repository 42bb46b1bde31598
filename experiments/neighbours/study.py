"""Every method under one protocol: recipe=common, the same small search for each, five seeds.

    python experiments/neighbours/study.py      # a first time: the search; a second time: the seeds that are reported

**Search.** Three values of each method's dial on seeds 100 and 101 and draw 1000 of the images, which no other number
here has. Taken is the value with the highest hold-out top-1, mean of the two seeds; of equals, the one that holds back
more. **Report.** Seeds 1 to 5, draw 0, at that value; for the methods in CURVES at all three.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import DictConfig

from robustft.common.files import write
from robustft.evaluation.summary import percent, signed
from robustft.report.forest import forest
from robustft.report.stats import Difference, holm, paired_difference
from robustft.report.tradeoff import contrast
from robustft.report.wise import Gap, gap
from robustft.studies import store
from robustft.studies.main import main, tables
from robustft.studies.store import Results
from robustft.studies.study import Entry

HERE = Path(__file__).resolve().parent
SEARCH_SEEDS, SEEDS, DRAW = (100, 101), range(1, 6), 1000
COMMON = "recipe=common"
COST = HERE.parent / "speed" / "methods_tiny.json"


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
STICK = tuple(k / 10 for k in range(1, 10))  # WiSE-FT's values on the curve that all are measured against; it is bent
COMBINED = (  # a combination, and what it is made of
    ("counterfactual", "distillation"),
    ("distillation-trajectory", "distillation"),
    ("counterfactual-trajectory", "counterfactual"),
    ("flyp-counterfactual", "flyp"),
    ("carot-counterfactual", "carot"),
    ("tracer-counterfactual", "tracer"),
)
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
        for value in STICK:
            if value not in ALPHAS:
                yield entry("wiseft", value, seed)


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
    """search.md: the dials, as far as they are searched; with all seeds comparison.md, matched.md and measures.md."""
    write(folder / "search.md", searched(results))
    if "zeroshot" not in results or not all(entry.name in results for entry in entries(DictConfig({}))):
        return
    tables(folder, results, baselines=["vanilla_seed-1"], leave_out="search_")
    write(folder / "matched.md", "\n".join(part(results) for part in (matched, differences, combined)))
    draw(folder / "gaps.png", results)
    write(folder / "measures.md", measures(results))


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
    """OOD where curves over the dial have equal ID, paired by seed."""
    told = (
        "OOD average at equal ID: first curve minus second, the mean over the ID range that both have, in points."
        " Curves\nare straight between their points. One of three points lies below the bent curve that it stands for;"
        " WiSE-FT's has 13,\nzero-shot and vanilla fine-tuning among them.\n"
    )
    return f"{told}\n{corrected(between_curves(results), 'Δ OOD at equal ID', first='curves')}"


def differences(results: Results) -> str:
    """OOD of every method at its dial minus vanilla's, and minus the WiSE-FT curve's at no less ID; paired by seed."""
    return "\n".join(
        [
            "OOD average minus vanilla fine-tuning's, in points, paired by seed.",
            "",
            corrected(over_vanilla(results), "Δ OOD to vanilla"),
            "OOD average minus the best that WiSE-FT of the same seed's vanilla model has at no less ID, in points;",
            "† beyond the curve's highest ID in some seed: above its OOD there.",
            "",
            corrected(over_wise(results), "gap to WiSE", beyond(results)),
        ]
    )


def combined(results: Results) -> str:
    """What a combination changes of the method that it is made of, each at its own dial."""
    gaps = all_gaps(results)
    rows = ["| | Δ ID [95%] | Δ OOD [95%] | Δ gap to WiSE [95%] | p of the gap, Holm |", "|---|---:|---:|---:|---:|"]
    changes = {}
    for new, old in COMBINED:
        first, second = of_seeds(new, results), of_seeds(old, results)
        changes[f"{new} − {old}"] = (
            difference(id_of(first), id_of(second)),
            difference(ood_of(first), ood_of(second)),
            difference(*({seed: one.ood for seed, one in gaps[system].items()} for system in (new, old))),
        )
    corrections = holm([p_of(change[-1]) for change in changes.values()])
    for (label, change), p in zip(changes.items(), corrections, strict=True):
        rows.append(f"| {label} | {' | '.join(map(shown, change))} | {p:.2g} |")
    return "\n".join(["Combinations minus what they are made of, each at its own dial.", "", *rows]) + "\n"


def between_curves(results: Results) -> dict[str, Difference]:
    """Of the curves: each minus WiSE-FT's, and counterfactual images minus the same images as they are."""
    wise = wise_curves(results)
    curves = {
        system: {
            seed: wise[seed]
            if system == "wiseft"
            else [point(results[name(system, value, seed)]) for value in SYSTEMS[system].values]
            for seed in SEEDS
        }
        for system in CURVES
    }
    pairs = [(system, "wiseft") for system in CURVES if system != "wiseft"] + [("counterfactual", "distillation")]
    found = {f"{first} − {second}": contrast(curves, [(first, second)]) for first, second in pairs}
    return {label: one for label, one in found.items() if one is not None}


def over_vanilla(results: Results) -> dict[str, Difference]:
    """OOD of every other system minus vanilla's."""
    vanilla = ood_of(of_seeds("vanilla", results))
    others = (system for system in SYSTEMS if system != "vanilla")
    return {system: difference(ood_of(of_seeds(system, results)), vanilla) for system in others}


def over_wise(results: Results) -> dict[str, Difference]:
    """The gap to WiSE-FT's curve of every system that is not on it."""
    return {
        system: difference({seed: one.ood for seed, one in found.items()}, dict.fromkeys(found, 0.0))
        for system, found in all_gaps(results).items()
    }


def beyond(results: Results) -> set[str]:
    """Which systems have, in some seed, an ID that the curve never reaches."""
    return {system for system, found in all_gaps(results).items() if any(one.beyond for one in found.values())}


def all_gaps(results: Results) -> dict[str, dict[int, Gap]]:
    """Of every system that is not on the curve, by seed."""
    wise = wise_curves(results)
    return {
        system: {seed: gap(point(record), wise[seed]) for seed, record in of_seeds(system, results).items()}
        for system in SYSTEMS
        if system not in ("vanilla", "wiseft")
    }


def wise_curves(results: Results) -> dict[int, list[tuple[float, float]]]:
    """Of every seed's vanilla model: zero-shot, WiSE-FT by α, the model itself."""
    return {
        seed: [
            point(results["zeroshot"]),
            *(point(results[name("wiseft", value, seed)]) for value in sorted({*STICK, *ALPHAS})),
            point(results[name("vanilla", None, seed)]),
        ]
        for seed in SEEDS
    }


def id_of(runs: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    return {seed: run["id"]["top1"] for seed, run in runs.items()}


def ood_of(runs: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    return {seed: run["ood_avg"] for seed, run in runs.items()}


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    found = paired_difference({**ours}, {**theirs})
    assert found is not None
    return found


def p_of(one: Difference) -> float:
    assert one.p is not None
    return one.p


def corrected(found: Mapping[str, Difference], what: str, marked: Collection[str] = (), first: str = "system") -> str:
    """Differences by their p, each with Holm's: at most so likely somewhere in the table if there were none."""
    told = sorted((p_of(one), label, one) for label, one in found.items())
    rows = [f"| {first} | {what} [95%] | p | p, Holm |", "|---|---:|---:|---:|"]
    for (p, label, one), worst in zip(told, holm([p for p, _, _ in told]), strict=True):
        rows.append(f"| {label} | {shown(one, '†' * (label in marked))} | {p:.2g} | {worst:.2g} |")
    return "\n".join(rows) + "\n"


def shown(one: Difference, mark: str = "") -> str:
    """In points, with its interval."""
    assert one.low is not None and one.high is not None
    return f"{signed(one.mean)}{mark} [{signed(one.low)}, {signed(one.high)}]"


def draw(file: Path, results: Results) -> None:
    """Draw every system's gap to the WiSE-FT curve, the largest first."""
    over, marked = over_wise(results), beyond(results)
    named = {system: f"{system}†" if system in marked else system for system in over}
    largest = sorted(over, key=lambda system: -over[system].mean)
    corrections = dict(zip(over, holm([p_of(one) for one in over.values()]), strict=True))
    undecided = {named[system] for system, p in corrections.items() if p >= 0.05}
    what = "OOD top-1 above WiSE-FT of vanilla fine-tuning at no less ID, points; 95% intervals\n"
    what += "† in some seed the curve never reaches that ID: above its OOD at its highest"
    what += "\nrings: not shown after Holm's correction"
    found = {named[system]: over[system] for system in largest}
    forest(file, {"gap": found}, what=what, title="Gap to the WiSE-FT curve", hollow=undecided)


MEASURES = (
    "ID",
    "OOD",
    "ECE, ID",
    "calibrated",
    "ECE, OOD",
    "calibrated",
    "NLL, OOD",
    "Δ knows",
    "models",
    "F",
    "s",
)


def measured(results: Results) -> dict[str, list[str]]:
    """By system, at its chosen dial, what ``MEASURES`` names: means of the seeds."""
    found = {}
    cost = json.loads(COST.read_text("utf-8"))["methods"] if COST.exists() else {}
    for system in ("zeroshot", *SYSTEMS):
        runs = dict.fromkeys(SEEDS, results["zeroshot"]) if system == "zeroshot" else of_seeds(system, results)
        every, made = runs.values(), SYSTEMS.get(system)
        cells = [percent(mean(run["id"]["top1"] for run in every)), percent(mean(run["ood_avg"] for run in every))]
        for where in (lambda run, metric: run["id"][metric], shifts):
            cells += [percent(mean(where(run, metric) for run in every)) for metric in ("ece", "ece_calibrated")]
        cells += [f"{mean(shifts(run, 'nll') for run in every):.2f}"]
        known = [forgotten(run) for run in every]
        cells += ["–" if None in known else signed(mean(one for one in known if one is not None))]
        cells += [str(runs[1]["protocol"]["models_at_inference"])]
        cells += spent(made, cost) if made and cost else ["–", "–"]
        found[system] = cells
    return found


def measures(results: Results) -> str:
    """Accuracy, calibration, what is still known, and cost, as a table."""
    rows = [f"| system | {' | '.join(MEASURES)} |", f"|---|{'---:|' * len(MEASURES)}"]
    rows += [f"| {system} | {' | '.join(cells)} |" for system, cells in measured(results).items()]
    told = (
        "In %; NLL in nats. Δ knows: mean change of top-1 on context and style by their prompts, in points."
        "\nModels: at inference. F: a training step's cost in forward passes of the image tower; s: seconds for 1,000"
        "\nimages, by the time of a vanilla step (../speed/methods_tiny.json, one thread). After training: those of the"
        "\nmodels that a method is of."
    )
    return "\n".join([*rows, "", told]) + "\n"


def spent(made: System, cost: Mapping[str, Mapping[str, float]]) -> list[str]:
    """F and seconds of training: the bench's, or those of the vanilla models that a method works on."""
    vanilla = cost[typed(SYSTEMS["vanilla"])]
    times = made.of * vanilla["vs_vanilla"] if made.of else cost[typed(made)]["vs_vanilla"]
    return [f"{3 * times:.1f}", f"{1000 * times / vanilla['images_per_s']:.1f}"]


def typed(made: System) -> str:
    """A method as ``robustft bench --methods`` takes it."""
    settings = made.at(made.values[0] if made.values else None)
    method = next((one.partition("=")[2] for one in settings if one.startswith("method=")), "counterfactual")
    return ",".join([method, *(one for one in settings if not one.startswith("method="))])


def of_seeds(system: str, results: Results) -> dict[int, dict[str, Any]]:
    """The results of a method at its dial, by seed."""
    value = chosen(system, results)
    return {seed: results[name(system, value, seed)] for seed in SEEDS}


def shifts(record: dict[str, Any], metric: str) -> float:
    return mean(of_set[metric] for of_set in record["ood"].values())


def forgotten(record: dict[str, Any]) -> float | None:
    """Mean change of top-1 on the other tasks; None where there is no text tower to ask with."""
    tasks = record["retention"]
    return mean(task["top1"] - task["zeroshot_top1"] for task in tasks.values()) if tasks else None


if __name__ == "__main__":
    main(__file__, entries, summarise)
