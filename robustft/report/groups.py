"""Runs that differ only in their seed, as one system with a name; trade-off curves over a dial."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustft.evaluation.summary import set_label
from robustft.report.runs import Record, Run
from robustft.report.stats import mean_std, within_seeds

PUBLISHED = 65  # in the order of systems: after those without a teacher
SYMBOLS = {"alpha": "α", "beta": "β", "temperature": "T"}


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

    @property
    def reference(self) -> bool:
        """The zero-shot model, which others are compared with."""
        return self.record["method"] == "zeroshot"

    @property
    def recipe(self) -> str | None:
        """The recipe by which it stands apart; see ``Run.recipe``."""
        return self.runs[0].recipe

    @property
    def transductive(self) -> bool:
        """Whether it has looked at the unlabelled test sets, and is not to be compared with those that have not."""
        return bool((self.record.get("protocol") or {}).get("transductive"))

    def per_seed(self, of: Callable[[Run], float | None]) -> list[float]:
        """What ``of`` gives of each run that has it, averaged within each seed."""
        found = [(run.record["seed"], of(run)) for run in self.runs]
        return within_seeds((seed, value) for seed, value in found if value is not None)

    def values(self, metric: str) -> list[float]:
        """The accuracy of each seed: the mean of its runs."""
        return self.per_seed(lambda run: run.value(metric))

    def points(self, x: str = "id", y: str = "ood_avg") -> list[tuple[float, float]]:
        """(x, y), by default ID and OOD average, of each seed that has both."""
        both = Group(self.label, [r for r in self.runs if r.value(x) is not None and r.value(y) is not None])
        return list(zip(both.values(x), both.values(y), strict=True))

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
        key = (*run.panel, run.recipe, json.dumps(given, sort_keys=True))
        parts.setdefault(key, []).append(run)
        settings[key] = given
    labels = {key: label(members[0], len(members)) for key, members in parts.items()}
    groups = []
    for key, members in parts.items():
        twins = [settings[k] for k in parts if labels[k] == labels[key] and k[:3] == key[:3]]
        own = [_short(name, value) for name, value in settings[key].items() if len(_kinds(twins, name)) > 1]
        groups.append(Group(f"{labels[key]} ({', '.join(own)})" if own else labels[key], members))
    return groups


def panel_title(groups: Sequence[Group]) -> str:
    """Name what systems of one panel have in common: "tiny on Scenes, recipe=common"."""
    model, id_name = groups[0].runs[0].panel
    recipe = next(filter(None, (group.recipe for group in groups)), None)
    return f"{model} on {set_label(id_name)}" + (f", recipe={recipe}" if recipe else "")


def reading_order(group: Group) -> tuple[Any, ...]:
    """From the zero-shot model over the baselines to the masked methods, settings ascending."""
    record, mask = group.record, group.record["mask"] or {}
    dials = (mask.get("threshold"), mask.get("rate"), record["beta"], record["alpha"], record["temperature"])
    place = PUBLISHED if group.published else group.runs[0].display.get("order", PUBLISHED)
    fills = ("none", "single", "multi")
    fill = fills.index(record["fill"]) if record["fill"] in fills else -1
    names = (mask.get("kind") or "", fill, *(-1.0 if dial is None else dial for dial in dials))
    return place, *names, group.label


@dataclass(frozen=True, eq=False)
class Curve:
    """Systems that differ in nothing but their main dial, in its order."""

    dial: str
    groups: Sequence[Group]

    @property
    def name(self) -> str:
        """The dial as people write it: "β", "weight"."""
        return SYMBOLS.get(self.dial, self.dial.rpartition(".")[2])


def curves(groups: Iterable[Group]) -> list[Curve]:
    """The trade-off curves among `groups`: two or more values of a system's main dial, all else equal."""
    parts: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        run = group.runs[0]
        dial = None if group.published else run.display["dial"]
        if dial is not None and run.dial(dial) is not None and group.values("ood_avg"):
            rest = {key: value for key, value in run.settings.items() if key != dial}
            key = json.dumps([run.panel, run.recipe, rest], sort_keys=True)
            parts.setdefault((dial, key), []).append(group)
    found = []
    for (dial, _), members in parts.items():
        values = [group.runs[0].dial(dial) for group in members]
        if len(set(values)) > 1:
            order = sorted(range(len(members)), key=values.__getitem__)
            found.append(Curve(dial, [members[k] for k in order]))
    return sorted(found, key=lambda curve: curve.dial)


def _kinds(twins: list[dict[str, Any]], name: str) -> set[str]:
    return {json.dumps(twin.get(name)) for twin in twins}


def _short(name: str, value: Any) -> str:
    """`optimizer.lr` and a value as "lr=0.001"; paths as the folders of their runs, each once."""
    paths = value
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError):
            paths = json.loads(value)
    several = paths if isinstance(paths, list) else [paths]
    if all(isinstance(path, str) and "/" in path for path in several):
        value = " + ".join(f"{n} × {of}" if n > 1 else of for of, n in Counter(map(_folder, several)).items())
    shown = f"{value:g}" if isinstance(value, float) else value
    return f"{name.rpartition('.')[2]}={shown}"


def _folder(value: str) -> str:
    """Of a run: its last part that is more than a seed or a time, which stand as stars."""
    path = Path(value)
    parts = [part.strip("*_-. ") for part in (path.parent if path.suffix else path).parts]
    return next(filter(None, reversed(parts)), path.name)


def label(run: Run, count: int = 1) -> str:
    """What a reader calls the system: "object mask, single-fill, t=0.3, β=3", "WiSE-FT, α=0.5"."""
    record, mask = run.record, run.record["mask"] or {}
    if record["method"] == "published":
        stem = re.sub(r"[_-]?\d+$", "", record["name"])
        return record["name"].replace("_", " ") if count == 1 else f"{'members' if stem == 'model' else stem} ({count})"
    told = run.display
    shown = {
        "t": mask.get("threshold"),  # null, as the rate is, where the mask does not take it
        "rate": mask.get("rate"),
        **{symbol: record[name] for name, symbol in SYMBOLS.items()},
    }
    if record["schema"] == 1 and told["dial"] is None:
        shown["β"] = None  # stood there for methods that have none
    if told["dial"] and told["dial"] not in SYMBOLS:
        shown[told["dial"].rpartition(".")[2]] = run.dial(told["dial"])
    values = [f"{name}={value:g}" for name, value in shown.items() if isinstance(value, int | float)]
    return ", ".join([told["label"], *values])
