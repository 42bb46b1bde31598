"""The tables of README.md and of the experiments' READMEs, made of the result files; their numbers in prose, checked.

    python experiments/readme.py            # fill the tables in; say which numbers in prose are others
    python experiments/readme.py --check    # change nothing; exit with 1 where something differs

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; TABLES says what NAME is made of. PROSE lists
sentences, or parts of them, with their numbers computed.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from io import StringIO
from pathlib import Path
from statistics import mean, median
from types import ModuleType
from typing import Any

from rich.console import Console

from robustft.common import terminal
from robustft.common.files import write
from robustft.common.imports import script
from robustft.evaluation.summary import percent, print_table, signed
from robustft.report.groups import Group
from robustft.report.published import SETS
from robustft.report.published import rows as rows_of
from robustft.report.runs import Run
from robustft.report.stats import Difference, holm, paired_difference
from robustft.report.table import comparison
from robustft.report.tradeoff import match
from robustft.studies import store

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n\n?)(.*?)(\n?\n<!-- end of table -->)", re.DOTALL)


@cache
def results(study: str) -> dict[str, dict[str, Any]]:
    """The results of a study by name."""
    return store.read(HERE / study / store.FILE)


WHOLE = "prompts of whole length"
NOT_YET = "*Not run on this version of the benchmark yet.*"


def is_run(study: str) -> bool:
    """Whether a study has results; where it has none, pages say so and no numbers."""
    return bool(results(study))


@cache
def module(study: str) -> ModuleType:
    """A study's own functions."""
    return script(HERE / study / "study.py")


def group(study: str, system: str, label: str = "") -> Group:
    """The runs of a system: the result of that name, or those of its seeds."""
    names = [name for name in results(study) if name == system or re.fullmatch(rf"{re.escape(system)}_seed-\d+", name)]
    assert names, f"{study} has no {system}"
    return Group(label or system, [Run(HERE / study / store.FILE, results(study)[name]) for name in names])


def difference(study: str, ours: str, theirs: str, metric: str = "ood_avg") -> Difference:
    found = paired_difference(group(study, ours).by_seed(metric), group(study, theirs).by_seed(metric))
    assert found is not None
    return found


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    lines[1] = ["|".join(lines[1])]
    return "\n".join(f"|{line[0]}|" if len(line) == 1 else f"| {' | '.join(line)} |" for line in lines)


def systems(study: str, rows: Mapping[str, str], against: Mapping[str, str] | None = None) -> str:
    """A table of systems: accuracies, and OOD differences ``against`` others.

    Args:
        rows: what the table calls a system, and what the study does.
    """
    groups = {system: group(study, system, label) for label, system in rows.items()}
    shifts = next(iter(groups.values())).record["ood"]
    bases = [(name, groups[base]) for name, base in (against or {}).items()]
    table = comparison(list(groups.values()), list(shifts), bases)
    kept = [k for k, column in enumerate(table.columns) if column != "seeds" and not column.startswith("Δ ID")]
    head = [re.sub(r"^ID \S+$", "ID", table.columns[k]) for k in kept]
    return markdown(head, [[row[k].text for k in kept] for row in table.rows])


def demo() -> str:
    """The table that the run prints."""
    text = StringIO()
    print_table(json.loads((HERE / "demo" / "results.json").read_text("utf-8")), Console(file=text, width=200))
    return "```\n" + "\n".join(line.rstrip() for line in text.getvalue().rstrip().split("\n")) + "\n```"


def masking() -> str:
    study = module("masking")
    plain, ours = study.NO_MASK, study.OBJECT_SINGLE
    claims = dict(study.claims())

    def cell(pairs: Sequence[tuple[str, str]], score: Callable[..., float] = study.ood_avg) -> str:
        found = study.compare(pairs, results("masking"), score)
        return prose(found) + ("" if found.n == 5 else f", {found.n} seeds")

    def top1(name: str) -> Callable[[dict[str, Any]], float]:
        return lambda record: record["ood"][f"scenes_{name}"]["top1"]

    def excess(record: dict[str, Any]) -> float:
        of = {name: top1(name)(record) for name in ("v2", "r", "sketch", "objectnet", "a")}
        return (of["objectnet"] + of["a"]) / 2 - (of["v2"] + of["r"] + of["sketch"]) / 3

    rows = {
        "1. masks above none: mean of nine cells": cell(claims["1: masks (mean of nine cells) above none"]),
        "1. object, single-fill above none": cell([(ours, plain)]),
        "2. refilled above no-fill: object masks": cell(claims["2: object, refilled (mean of two) above no-fill"]),
        "2. … context masks": cell(claims["2: context, refilled (mean of two) above no-fill"]),
        "2. … random masks": cell(claims["2: random, refilled (mean of two) above no-fill"]),
        "3. object above random, mean of fills": cell(claims["3: object above random (mean of fills)"]),
        "3. object above context, mean of fills": cell(claims["3: object above context (mean of fills)"]),
        "4. object, single-fill above none: A; Sketch": "; ".join(
            cell([(ours, plain)], top1(name)) for name in ("a", "sketch")
        ),
        "4. ObjectNet and A above V2, R and Sketch": cell([(ours, plain)], excess),
    }
    return markdown(["claim of the paper", "found here"], list(rows.items()))


VARIANTS = {
    "exact: the student's map, all layers": ("exact", "exact"),
    "the teacher's map, taken once (`mask.source=teacher`)": ("teacher_maps", "cached"),
    "relevance of the last layer alone (`mask.layers=1`, of 4)": ("last_layer", "last_layer"),
    "of the last two layers (`mask.layers=2`)": ("last_two_layers", None),
    "Grad-CAM (`mask.cam=gradcam`)": ("gradcam", None),
    "random masks, no-fill (`mask=random fill=none`): half the patches dropped": ("random_no-fill", "no_fill"),
}


def variants() -> str:
    cost = bench("tiny")
    rows = []
    for label, (system, step) in VARIANTS.items():
        timed = (
            ["not timed", ""]
            if step is None
            else [f"{cost[step]['vs_vanilla']:.2f}", f"{cost[step]['images_per_s']:.0f}"]
        )
        table = comparison([group("variants", system)], list(group("variants", system).record["ood"]))
        changes = ["", ""]
        if system != "exact":
            changes = [full(difference("variants", system, "exact", metric)) for metric in ("id", "ood_avg")]
        rows.append([label, *timed, table.rows[0][2].text, table.rows[0][3].text, *changes])
    return markdown(["variant", "cost in vanilla steps", "images/s", "ID", "OOD avg", "Δ ID", "Δ OOD"], rows)


def weight_space() -> str:
    rows = []
    for place, suffix in ((0.5, ""), (0.9, " (chosen on the hold-out)")):
        for name, label in (("vanilla", "vanilla"), ("counterfactual", "this method")):
            found = [
                difference("weight_space", f"wise_{name}_alpha-{place}", name, metric) for metric in ("id", "ood_avg")
            ]
            rows.append([f"{label}, α = {place}{suffix}", *map(prose, found)])
    return markdown(["change against the model itself (α = 1), in points", "ID", "OOD avg"], rows)


def benched(model: str) -> dict[str, Any]:
    return json.loads((HERE / "speed" / f"{model}.json").read_text("utf-8"))


def bench(model: str) -> dict[str, dict[str, float]]:
    return benched(model)["variants"]


def step_rows(model: str) -> list[str]:
    """Every step of a bench: name, images/s, ratios and memory."""
    rows = []
    labels = {"one_backward": "exact, one backward pass", "last_layer": "exact, relevance of the last layer alone"}
    labels["no_fill"] = "random masks, no-fill"
    in_float32 = benched(model)["precision"] == "32-true"  # there bfloat16 gains nothing
    for suffix, precision in (("", "fp32"),) if in_float32 else (("", "bf16"), ("_fp32", "fp32")):
        for name in ("vanilla", "direct", "exact", "cached", *labels):
            if values := bench(model).get(name + suffix):
                label = labels.get(name, name)
                numbers = [f"{values[key]:.2f}" for key in ("images_per_s", "vs_direct", "vs_vanilla", "floor_share")]
                rows.append([f"{label}, {precision}", *numbers, f"{values['peak_bytes'] / 2**20:,.0f} MiB"])
    return rows


def steps(model: str) -> str:
    head = ["step", "images/s", "× direct fp32", "cost in vanilla steps", "share of floor", "peak memory"]
    return markdown(head, step_rows(model))


def methods(model: str) -> str:
    """Every training method against its own floor, by what the study of the neighbours calls it."""
    study, found = module("neighbours"), benched(f"methods_{model}")["methods"]
    keys = ("images_per_s", "vs_vanilla", "forwards", "floor", "floor_share", "timed_share")
    rows = []
    for system, made in study.SYSTEMS.items():
        typed = "" if made.of else study.typed(made)
        for name, label in ((typed, system), (f"{typed}, {WHOLE}", f"{system}, {WHOLE}")):
            if values := found.get(name):
                rows.append([label, *(f"{values[key]:.2f}" for key in keys)])
    head = ["method", "images/s", "cost in vanilla steps", "in forwards", "floor", "share of floor", "texts as timed"]
    return markdown(head, rows)


def speed() -> str:
    found = bench("vitb32")
    rows = []
    for label, name in {
        "vanilla fine-tuning": "vanilla",
        "the method, written directly": "direct",
        "the method, here": "exact",
        "the method, maps of the teacher known (`mask.source=teacher`)": "cached",
    }.items():
        fp32, bf16 = found[f"{name}_fp32"], found[name]
        numbers = [f"{fp32['images_per_s']:.1f}", f"{fp32['vs_direct']:.2f}", f"{fp32['vs_vanilla']:.2f}"]
        memory = " / ".join(f"{values['peak_bytes'] / 2**20:,.0f}" for values in (fp32, bf16))
        rows.append([label, *numbers, f"{bf16['vs_direct']:.2f}", f"{memory} MiB"])
    head = ["step, ViT-B/32", "images/s, fp32", "× direct", "cost in vanilla steps", "bf16, × direct fp32"]
    return markdown([*head, "peak memory, fp32 / bf16"], rows)


def kd_beta() -> str:
    """As the study's own table, the one chosen in bold."""
    lines = (HERE / "kd_beta" / "beta.md").read_text("utf-8").strip().split("\n")
    chosen = "kd, β = 0.1"
    return "\n".join(re.sub(r"\| (.*) \| (.*) \|", r"| **\1** | **\2** |", x) if chosen in x else x for x in lines)


def targets() -> list[str]:
    """What is wanted and reached, and every system."""
    return (HERE / "targets" / "targets.md").read_text("utf-8").rstrip().split("\n\n")


BACKBONES = {"vitb32": "B/32", "vitb16": "B/16"}


def published() -> str:
    """Published numbers of every method, their source and their trap; ours beside them once the study has been run."""
    ours = results("neighbours") if (HERE / "neighbours" / "comparison.md").is_file() else {}
    head = ["published system", "ID", "OOD avg", "source", "what to know", "command"]
    rows = []
    for row in rows_of(HERE / "neighbours" / "published.csv"):
        shifts = [float(row[name]) for name in SETS[1:-1] if row[name]]
        average = row["ood_avg"] or f"({percent(sum(shifts) / len(shifts) / 100)} of {len(shifts)})"
        command = f"`{row['command']}`" if row["command"] else "not here"
        system = f"{BACKBONES[row['model']]} {row['system'].replace('_', ' ')}"
        cells = [system, row["imagenet"], average, row["source"], row["trap"] or "–", command]
        rows.append([*cells, *([_ours(_system(row), ours)] if ours else [])])
    if not ours:
        return markdown(head, rows)
    named = {_system(row) for row in rows_of(HERE / "neighbours" / "published.csv")}
    study = module("neighbours")
    for system, made in study.SYSTEMS.items():
        if system not in named:
            typed = made.at(study.chosen(system, ours))
            command = f"`{' '.join([*typed, *['checkpoint=RUN'] * bool(made.of)])}`"
            combination = system in dict(study.COMBINED) and system != "counterfactual"
            source = "unpublished" if combination else "not looked up"
            protocol = study.of_seeds(system, ours)[study.SEEDS[0]]["protocol"]
            trap = "looks at whole unlabelled test sets" if protocol["transductive"] else "–"
            rows.append([system, "–", "–", source, trap, command, _ours(system, ours)])
    return markdown([*head, "ours, embedded benchmark: ID / OOD avg"], rows)


OURS = {"object_single": "counterfactual", "flyp_as_published": "flyp", "lpft_vrf": "lpft"}  # where names differ
OURS |= {"model_stock": "model-stock"}


def _system(row: Mapping[str, str]) -> str:
    """What the study calls the system of a published number."""
    system = row["system"].partition(" (")[0]
    return OURS.get(system, system)


def _ours(system: str, ours: Mapping[str, dict[str, Any]]) -> str:
    """Mean over seeds of a system, at the value of its dial that was chosen; a dash: there is none."""
    study = module("neighbours")
    runs = [ours[system]] if system in ours else []
    if system in study.SYSTEMS:
        runs = list(study.of_seeds(system, ours).values())
    if not runs:
        return "–"
    return " / ".join(percent(mean(values)) for values in zip(*(point_of(run) for run in runs), strict=True))


CHOICES = {
    "no more than one vanilla training": "wiseft",
    "two trainings may be spent": "model-stock",
    "no ID accuracy lost, two models at inference": "ose",
    "other tasks and ID mostly stay, no text tower in training": "distillation",
    "OOD accuracy, calibration and other tasks, for some ID": "tracer",
    "whole unlabelled test sets are at hand": "dawin",
}


def choices() -> str:
    """What the neighbours study would have one take, by what matters; the numbers of the chosen dials."""
    study, ours = module("neighbours"), results("neighbours")
    measured = study.measured(ours)
    gaps = {system: full(one) for system, one in study.over_wise(ours).items()}
    rows = []
    for what, system in CHOICES.items():
        typed = " ".join(study.SYSTEMS[system].at(study.chosen(system, ours)))
        known = [measured[system][study.MEASURES.index(name)] for name in ("ID", "OOD", "Δ knows", "F")]
        rows.append([what, f"`{typed}`", *known, gaps.get(system, "–")])
    return markdown(["what matters", "settings", "ID", "OOD", "Δ knows", "F", "gap to WiSE-FT"], rows)


BETA_1 = {
    "zero-shot": "zeroshot",
    "vanilla fine-tuning": "vanilla",
    "distillation without masks, β = 1": "distillation_no-mask_beta-1",
    "this method, β = 1": "object_single-fill_beta-1",
}
COMPARED = {
    "zero-shot": "zeroshot",
    "linear probe": "linear_probe",
    "vanilla fine-tuning": "vanilla",
    "LP-FT": "lpft",
    "WiSE-FT of this method's model": "wiseft_counterfactual",
    "WiSE-FT": "wiseft",
    "greedy soup": "soup_greedy",
    "uniform soup": "soup_uniform",
    "KD": "kd_factual",
    "KD, counterfactual (object, single-fill)": "kd_counterfactual",
    "feature distillation, no mask": "distillation",
    "**this method, single-fill**": "object_single",
    "**this method, multi-fill**": "object_multi",
}
NEEDS = {
    "retention": "retention/results.jsonl",
    "demo": "demo/results.json",
    "kd_beta": "kd_beta/beta.md",
    "cam_truth": "cam_truth/table.md",
    "probe": "probe/probe.md",
    "methods_tiny": "speed/methods_tiny.json",
    "methods_vitb32": "speed/methods_vitb32.json",
    "choices": "neighbours/comparison.md",
    "targets": "targets/targets.md",
    "targets_systems": "targets/targets.md",
} | {
    study: f"{study}/comparison.md" for study in ("seeds", "comparison", "masking", "variants", "weight_space")
}  # what a table is made of and a study may not have left yet
TABLES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "seeds": lambda: systems("seeds", BETA_1),
    "comparison": lambda: systems("comparison", COMPARED, {"vanilla": "vanilla", "WiSE-FT": "wiseft"}),
    "masking": masking,
    "variants": variants,
    "weight_space": weight_space,
    "kd_beta": kd_beta,
    "published": published,
    "choices": choices,
    "cam_truth": lambda: (HERE / "cam_truth" / "table.md").read_text("utf-8").rstrip(),
    "targets": lambda: targets()[0],
    "targets_systems": lambda: targets()[1],
    "retention": lambda: module("retention").table(results("retention")).rstrip(),
    "probe": lambda: (HERE / "probe" / "probe.md").read_text("utf-8").rstrip(),
    "speed": speed,
    "methods_tiny": lambda: methods("tiny"),
    "methods_vitb32": lambda: methods("vitb32"),
    "speed_tiny": lambda: steps("tiny"),
    "speed_vitb32": lambda: steps("vitb32"),
    "speed_vitb16": lambda: steps("vitb16"),
}


def table(name: str) -> str:
    """The table of that name, or that there is none yet."""
    return NOT_YET if name in NEEDS and not (HERE / NEEDS[name]).exists() else TABLES[name]()


def number(fraction: float | None) -> str:
    """In points, as prose has it: a minus, no plus."""
    assert fraction is not None
    return signed(fraction).removeprefix("+")


def prose(found: Difference) -> str:
    return f"{signed(found.mean)} [{number(found.low)}, {number(found.high)}]"


def full(found: Difference) -> str:
    assert found.low is not None and found.high is not None
    return f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]"


def size(found: Difference) -> str:
    """A difference of which the sentence says the direction."""
    low, high = (found.low, found.high) if found.mean > 0 else (-(found.high or 0), -(found.low or 0))
    return f"{percent(abs(found.mean))} [{number(low)}, {number(high)}]"


def said() -> Iterator[tuple[str, str]]:
    """Files, and what they should say."""
    if is_run("seeds"):
        yield from said_of_seeds()
    if is_run("comparison"):
        yield from said_of_comparison()
    if (HERE / "neighbours" / "comparison.md").is_file():
        yield from said_of_neighbours()
    flyp = [benched("methods_vitb32")["methods"][name]["forwards"] for name in ("flyp", f"flyp, {WHOLE}")]
    yield "experiments/speed/README.md", f"FLYP costs {flyp[0]:.2f} forwards, {flyp[1]:.2f} with {WHOLE}"
    b16 = bench("vitb16")
    fp32, bf16 = (b16[name]["vs_direct"] for name in ("exact_fp32", "exact"))
    memory = [b16[name]["peak_bytes"] / b16["direct_fp32"]["peak_bytes"] for name in ("exact_fp32", "exact")]
    yield "README.md", f"{fp32:.2f} (fp32) and {bf16:.2f} (bf16) times as fast as the direct one in fp32"
    yield "README.md", f"takes {memory[0]:.2f} and {memory[1]:.2f} of its memory"
    vanilla, distilled = (
        f"{median(run.record['wall_s'] for run in group('targets', f'{name}_draw-1001').runs):.0f} s"
        for name in ("vanilla", "features_beta-3")
    )
    yield "docs/scenes.md", f"took {vanilla} (vanilla) and {distilled} (distillation without masks)"
    page = "experiments/sweep_threshold_beta/README.md"
    for record in results("sweep_threshold_beta").values():
        yield page, f"{percent(record['id']['top1'])} / {percent(record['ood_avg'])}"


def said_of_seeds() -> Iterator[tuple[str, str]]:
    vanilla, ours = "vanilla", BETA_1["this method, β = 1"]
    gain, cost = (difference("seeds", ours, vanilla, metric) for metric in ("ood_avg", "id"))
    bought, paid = (difference("seeds", vanilla, "zeroshot", metric) for metric in ("id", "ood_avg"))
    curves = {
        name: {
            seed: [point("seeds", f"{system}_beta-{beta}_seed-{seed}") for beta in (0.3, 1, 3)] for seed in range(1, 6)
        }
        for name, system in (("masks", "object_single-fill"), ("none", "distillation_no-mask"))
    }
    matched = match(curves).difference("masks", "none")
    assert matched is not None and matched.high is not None and matched.low is not None
    yield "README.md", f"({prose(gain)} OOD for {prose(cost)} ID, paired by seed)"
    yield "README.md", f"buys {bought.mean * 100:.0f} points of ID accuracy with {-paid.mean * 100:.0f} points of OOD"
    yield "README.md", f"the method lies {size(matched)} points above distillation without masks"
    page = "experiments/seeds/README.md"
    yield page, f"gains {percent(bought.mean)} points on ID and loses {size(paid)} on the OOD average"
    yield page, f"{size(gain)} points above vanilla on OOD and {size(cost)} below on ID"
    yield page, f"lies {size(matched)} points above the one without masks"
    yield page, f"differences of OOD average below {percent((matched.high - matched.low) / 2)} points"


def said_of_comparison() -> Iterator[tuple[str, str]]:
    kd = {metric: difference("comparison", "kd_counterfactual", "kd_factual", metric) for metric in METRICS}
    at = {name: [percent(sum(v) / len(v)) for m in ("ood_avg", "id") for v in [group("comparison", name).values(m)]]
          for name in ("kd_counterfactual", "kd_factual")}  # fmt: skip
    told = f"{at['kd_counterfactual'][0]} against {at['kd_factual'][0]} OOD at {at['kd_factual'][1]} ID"
    yield "README.md", f"({told}, {prose(kd['ood_avg'])})"
    page = "experiments/comparison/README.md"
    of = {metric: size(found) for metric, found in kd.items()}
    yield page, f"logit distillation {of['ood_avg']} points of OOD, {of['scenes_objectnet']} on ObjectNet's counterpart"
    yield page, f"and {of['scenes_a']} on A's"
    single, multi = (
        difference("comparison", f"object_{fill}", "distillation", "scenes_a") for fill in ("single", "multi")
    )
    yield page, f"on A alone {size(single)} with single- and {size(multi)} with multi-fill"
    wise = [difference("comparison", "wiseft", "object_single", metric) for metric in ("ood_avg", "id")]
    yield page, f"{size(wise[0])} points more OOD than this method for {size(wise[1])} points less ID"


def said_of_neighbours() -> Iterator[tuple[str, str]]:
    """Bullet by bullet."""
    page, study, found = "experiments/neighbours/README.md", module("neighbours"), results("neighbours")
    curves, gaps, gains = study.between_curves(found), study.over_wise(found), study.over_vanilla(found)
    curve = {label: full(one) for label, one in curves.items()}
    four = ("counterfactual images", "distillation", "KD", "TRACER")
    names = ("counterfactual", "distillation", "kd", "tracer")
    above = ", ".join(f"{told} {curve[f'{name} − wiseft']}" for told, name in zip(four, names, strict=True))
    yield page, f"{above} points of OOD; CaRot {curve['carot − wiseft']}."
    assert all(p < 0.05 for p in _holm(curves)[:-1])

    shown = {system for system, p in zip(gaps, _holm(gaps), strict=True) if p < 0.05}
    assert shown == {"dawin", "model-stock", "tracer-counterfactual", "tracer", "l2sp", "lora"}
    gap, number_of = {system: full(one) for system, one in gaps.items()}, len(gaps)
    yield (
        page,
        f"four of {number_of} systems are shown to lie above WiSE-FT's curve, and two below**: DaWin {gap['dawin']} (",
    )
    yield page, f"Model Stock {gap['model-stock']} (two"
    yield page, f"TRACER on counterfactual images {gap['tracer-counterfactual']} and TRACER {gap['tracer']};"
    yield page, f"L2-SP {gap['l2sp']} and LoRA {gap['lora']}, at"
    others = [one for system, one in gaps.items() if system not in shown]
    yield page, f"Of the other {len(others)}, {sum(one.mean > 0 for one in others)} have a positive mean"
    yield "README.md", f"four of the {number_of} that can be compared are shown to lie above the WiSE-FT curve: DaWin ("
    yield "README.md", f"DaWin ({gap['dawin']} points of OOD; it uses the unlabelled test sets), Model Stock ("
    yield "README.md", f"Model Stock ({gap['model-stock']}; two trainings), TRACER ({gap['tracer']}) and"
    yield "README.md", f"TRACER on counterfactual images ({gap['tracer-counterfactual']}); two are shown to lie below"
    yield "README.md", f"and for the other {len(others)} five seeds do not decide"

    better = [one.mean > 0 and p < 0.05 for one, p in zip(gains.values(), _holm(gains), strict=True)]
    yield page, f"{sum(better)} of {len(better)} are shown to gain OOD over vanilla fine-tuning.**"
    gain = {system: full(one) for system, one in gains.items()}
    yield page, f"{gain['flyp']} OOD, and so are FLYP with all prompts of the class ({gain['flyp-class']})"
    yield page, f"LP-FT ({gain['lpft']}, p = {gains['lpft'].p:.3f})"
    yield from said_of_calibration(page)
    yield from said_of_other_tasks(page)

    masks = curves["counterfactual − distillation"]
    yield page, f"{full(masks)} over the curves, p = {masks.p:.2f}"
    ours = {system: study.of_seeds(system, found) for system in study.SYSTEMS}
    change = {
        new: [full(study.difference(of(ours[new]), of(ours[old]))) for of in (study.ood_of, study.id_of)]
        for new, old in study.COMBINED
    }
    timed = benched("methods_tiny")["methods"]
    cost = [timed[study.typed(study.SYSTEMS[name])]["forwards"] for name in ("counterfactual", "distillation")]
    yield page, f"at twice the cost ({cost[0]:.1f} F against {cost[1]:.1f})"
    yield page, f"At β = 0.3 both, {change['counterfactual'][0]} OOD for {change['counterfactual'][1]} ID"
    for new in ("flyp-counterfactual", "counterfactual-trajectory"):
        yield page, f"{change[new][0]} OOD for {change[new][1]} ID"
    runs = [name.startswith("search_") for name in found]
    yield page, f"{len(runs)} runs on scenes: {sum(runs)} of the search and {len(runs) - sum(runs)} that are reported"


def _holm(differences: Mapping[str, Difference]) -> list[float]:
    return holm([one.p for one in differences.values() if one.p is not None])


def said_of_calibration(page: str) -> Iterator[tuple[str, str]]:
    study = module("neighbours")

    def ece(system: str, metric: str = "ece") -> str:
        runs = study.of_seeds(system, results("neighbours")).values()
        return f"{percent(mean(study.shifts(run, metric) for run in runs))}%"

    def warm(system: str) -> str:
        return ece(system, "ece_calibrated")

    yield page, f"{ece('carot')[:-1]} and {ece('tracer')}, against {ece('vanilla')} of vanilla fine-tuning and"
    yield page, f"FLYP's ({ece('flyp')}) is that of distillation ({ece('distillation')}) and WiSE-FT ({ece('wiseft')})."
    yield (
        page,
        f"lowers vanilla's to {warm('vanilla')} and raises CaRot's ({warm('carot')}), TRACER's ({warm('tracer')}),",
    )
    yield page, f"OSE's ({warm('ose')}) and VRF's ({warm('vrf')}). With it TRACER and DaWin have {warm('dawin')},"
    yield page, f"counterfactual images {warm('counterfactual')}."


def said_of_other_tasks(page: str) -> Iterator[tuple[str, str]]:
    study, found = module("neighbours"), results("neighbours")

    def lost(system: str, value: float | None = None) -> str:
        value = study.chosen(system, found) if value is None else value
        runs = [found[study.name(system, value, seed)] for seed in study.SEEDS]
        return number(-mean(study.forgotten(run) for run in runs))

    yield page, f"KD at β = 0.1 and 0.3 loses {lost('kd', 0.1)} and {lost('kd', 0.3)} points on context and style"
    yield page, f"distillation at β = 1 and 3 loses {lost('distillation', 1)} and {lost('distillation', 3)}."
    yield page, f"Vanilla fine-tuning loses {lost('vanilla')}, WiSE-FT {lost('wiseft')}, CAR-FT {lost('carft')},"
    yield page, f"counterfactual images {lost('counterfactual')}, TRACER {lost('tracer')}, Lipsum-FT {lost('lipsum')};"
    yield page, f"LDIFS, made for this, {lost('ldifs')} at the value"


METRICS = ("id", "ood_avg", "scenes_objectnet", "scenes_a")


def point(study: str, name: str) -> tuple[float, float]:
    return point_of(results(study)[name])


def point_of(record: Mapping[str, Any]) -> tuple[float, float]:
    return record["id"]["top1"], record["ood_avg"]


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(HERE.glob("*/README.md"))]


def faults(change: bool) -> Iterator[str]:
    """What differs from the result files; with ``change`` the tables are filled in."""
    used = set()
    for page in pages():
        text = page.read_text("utf-8")
        where = page.relative_to(ROOT)
        for start, name, found, end in BLOCK.findall(text):
            used.add(name)
            if name not in TABLES:
                yield f"{where}: there is no table {name}; there are {', '.join(TABLES)}"
            elif found != table(name):
                end_line = end if found else f"\n{end}"  # an empty one shares its blank line
                text = text.replace(f"{start}{found}{end}", f"{start}{table(name)}{end_line}")
                if not change:
                    yield f"{where}: the table {name} differs from the result files"
        if text.count("<!-- table:") != len(BLOCK.findall(text)):
            yield f"{where}: a table has no end"
        if change and text != page.read_text("utf-8"):
            write(page, text)
    yield from (f"no page has the table {name}" for name in TABLES if name not in used)
    for name, sentence in said():
        if " ".join(sentence.split()) not in " ".join((ROOT / name).read_text("utf-8").split()):
            yield f"{name} does not say: {sentence}"


def main() -> int:
    """Exit status 0, or 1 where something differs (or still does)."""
    found = list(faults(change="--check" not in sys.argv[1:]))
    print("\n".join(found) or "All tables and numbers are those of the result files.")
    if found and "--check" in sys.argv[1:]:
        print("python experiments/readme.py fills the tables in.")
    return bool(found)


if __name__ == "__main__":
    terminal.use_plain_letters()
    sys.exit(main())
