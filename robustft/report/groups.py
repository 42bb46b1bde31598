"""Runs that differ only in their seed, as one system with a name; trade-off curves over a dial."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustft.common.configs import flatten
from robustft.report.runs import Record, Run
from robustft.report.stats import mean_std, within_seeds

METHODS = {
    "zeroshot": "zero-shot",
    "finetune": "vanilla fine-tuning",
    "linear_probe": "linear probe",
    "lpft": "LP-FT",
    "wiseft": "WiSE-FT",
    "kd": "KD",
}


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but their seed (or: the members of a published collection)."""

    label: str
    runs: Sequence[Run]

    @property
    def record(self) -> Record:
        return self.runs[0].record

    @property
    def published(self) -> bool:
        return self.record["method"] == "published"

    def per_seed(self, of: Callable[[Run], float | None]) -> list[float]:
        """What ``of`` gives of each run that has it, averaged within each seed."""
        found = [(run.record["seed"], of(run)) for run in self.runs]
        return within_seeds((seed, value) for seed, value in found if value is not None)

    def values(self, metric: str) -> list[float]:
        """The accuracy of each seed: the mean of its runs."""
        return self.per_seed(lambda run: run.top1(metric))

    def points(self) -> list[tuple[float, float]]:
        """(ID, OOD average) of each seed that has both."""
        both = Group(self.label, [r for r in self.runs if r.top1("id") is not None and r.top1("ood_avg") is not None])
        return list(zip(both.values("id"), both.values("ood_avg"), strict=True))

    def by_seed(self, metric: str) -> dict[int | None, float]:
        """The accuracy of each seed; under None where it holds for every seed."""
        parts: dict[int | None, list[Run]] = {}
        for run in self.runs:
            parts.setdefault(None if run.constant else run.record["seed"], []).append(run)
        found = {seed: Group(self.label, runs).values(metric) for seed, runs in parts.items()}
        return {seed: mean_std(values)[0] for seed, values in found.items() if values}

    @property
    def repeated(self) -> dict[int, int]:
        """How many runs there are of each seed that has several."""
        counts = Counter(run.record["seed"] for run in self.runs if run.record["seed"] is not None)
        return {seed: count for seed, count in counts.items() if count > 1}


def group_over_seeds(runs: Iterable[Run]) -> list[Group]:
    """Groups of equal panel and settings, in order of appearance, with labels that tell them apart."""
    parts: dict[tuple[Any, ...], list[Run]] = {}
    settings: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        given = run.settings
        key = (*run.panel, json.dumps(given, sort_keys=True))
        parts.setdefault(key, []).append(run)
        settings[key] = given
    labels = {key: label(members[0].record, len(members)) for key, members in parts.items()}
    groups = []
    for key, members in parts.items():
        twins = [settings[k] for k in parts if labels[k] == labels[key] and k[:2] == key[:2]]
        own = [_short(name, value) for name, value in settings[key].items() if len(_kinds(twins, name)) > 1]
        groups.append(Group(f"{labels[key]} ({', '.join(own)})" if own else labels[key], members))
    return groups


def reading_order(group: Group) -> tuple[Any, ...]:
    """From the zero-shot model over the baselines to the masked methods, settings ascending."""
    record, mask = group.record, group.record["mask"] or {}
    dials = (mask.get("threshold"), mask.get("rate"), record["beta"], record["alpha"], record["temperature"])
    known = [
        "zeroshot",
        "linear_probe",
        "finetune",
        "lpft",
        "wiseft",
        "soup",
        "published",
        "kd",
        "counterfactual",
    ]
    place = known.index(record["method"]) if record["method"] in known else len(known)
    fill = ["none", "single", "multi"].index(record["fill"]) if record["fill"] in ("none", "single", "multi") else -1
    names = (mask.get("kind") or "", fill, *(-1.0 if dial is None else dial for dial in dials))
    return place, *names, group.label


@dataclass(frozen=True, eq=False)
class Curve:
    """Systems that differ in nothing but `dial` ("alpha" or "beta"), in its order."""

    dial: str
    groups: Sequence[Group]


def curves(groups: Iterable[Group], dial: str) -> list[Curve]:
    """The trade-off curves among `groups`: two or more values of `dial`, all else equal."""
    parts: dict[str, list[Group]] = {}
    for group in groups:
        if not group.published and group.record[dial] is not None and group.values("ood_avg"):
            rest = {key: value for key, value in group.runs[0].settings.items() if key != dial}
            parts.setdefault(json.dumps([group.runs[0].panel, rest], sort_keys=True), []).append(group)
    ordered = [sorted(members, key=lambda group: group.record[dial]) for members in parts.values()]
    return [Curve(dial, members) for members in ordered if len({group.record[dial] for group in members}) > 1]


def _kinds(twins: list[dict[str, Any]], name: str) -> set[str]:
    return {json.dumps(twin.get(name)) for twin in twins}


def _short(name: str, value: Any) -> str:
    """`optimizer.lr` and a value as "lr=0.001"; a path as the folder of its run."""
    if isinstance(value, str) and "/" in value:
        path = Path(value)
        value = (path.parent if path.suffix else path).name.strip("*_-. ") or path.name
    shown = f"{value:g}" if isinstance(value, float) else value
    return f"{name.rpartition('.')[2]}={shown}"


def label(record: Record, count: int = 1) -> str:
    """What a reader calls the system: "object mask, single-fill, t=0.3, β=3", "WiSE-FT, α=0.5"."""
    method, mask = record["method"], record["mask"] or {}
    if method == "published":
        stem = re.sub(r"[_-]?\d+$", "", record["name"])
        return record["name"].replace("_", " ") if count == 1 else f"{'members' if stem == 'model' else stem} ({count})"
    kind = mask.get("kind") or "none"
    parts = [METHODS.get(method, method.replace("_", " "))]
    if method == "soup":
        parts = ["greedy soup" if dict(flatten(record["config"])).get("method.greedy") else "uniform soup"]
    if kind != "none":
        parts = ([] if method == "counterfactual" else parts) + [
            f"{kind} mask",
            f"{record['fill'] or 'no'}-fill",
        ]
        parts[-1] = parts[-1].replace("none-fill", "no-fill")
    elif method == "counterfactual":
        parts = ["distillation, no mask"]
    shown = {"t": None, "rate": None, "β": record["beta"], "α": record["alpha"], "T": record["temperature"]}
    if method == "finetune":
        shown["β"] = None
    if kind == "random":
        shown["rate"] = mask.get("rate")
    elif kind != "none":
        shown["t"] = mask.get("threshold")
    return ", ".join(parts + [f"{name}={value:g}" for name, value in shown.items() if value is not None])
