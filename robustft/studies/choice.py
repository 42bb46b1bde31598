"""Which of several systems to use: each at the value of its dial that the hold-out chooses, paired by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustft.common.wording import counted, noun
from robustft.evaluation.summary import percent, signed
from robustft.report.groups import label
from robustft.report.runs import Record, Run
from robustft.report.stats import Difference, mean_std, paired_difference
from robustft.report.tradeoff import cells, markdown, match

TOLERANCE = 0.01 + 1e-9  # of ID accuracy: what one may give for robustness; rounding takes nothing of it


@dataclass(frozen=True)
class System:
    """A method at one value of its dial.

    Attributes:
        typed: the method with its own settings: values of one dial have it in common.
        records: the content of results.json by seed.
        base: others are compared with it.
    """

    typed: str
    value: float | None
    records: Mapping[int, Record]
    base: bool = False

    @property
    def run(self) -> Run:
        return Run(Path(), next(iter(self.records.values())))

    @property
    def label(self) -> str:
        """As reports call it, with what was typed where that says more."""
        own = self.typed.partition(",")[2]
        return label(self.run) + (f" ({own})" if own else "")

    @property
    def transductive(self) -> bool:
        """Whether it has looked at the unlabelled test sets: shown beside others, and never what is recommended."""
        return bool((self.run.record.get("protocol") or {}).get("transductive"))

    def by_seed(self, key: str) -> dict[int | None, float]:
        """A score of every seed that has it; see ``Run.value``."""
        found = {seed: Run(Path(), record).value(key) for seed, record in self.records.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, key: str) -> float | None:
        values = list(self.by_seed(key).values())
        return mean_std(values)[0] if values else None

    def minus(self, other: "System", key: str) -> Difference | None:
        return paired_difference(self.by_seed(key), other.by_seed(key))


def selected(systems: Sequence[System]) -> list[System]:
    """Of each method the value of its dial with the best mean hold-out accuracy; without a hold-out the middle one."""
    chosen = []
    for typed in dict.fromkeys(system.typed for system in systems):
        values = [system for system in systems if system.typed == typed]
        scored = [system for system in values if system.mean("holdout") is not None]
        chosen.append(max(scored, key=lambda one: one.mean("holdout") or 0.0) if scored else values[len(values) // 2])
    return chosen


def choose(systems: Sequence[System]) -> tuple[str, str]:
    """A paired table of the methods, the curves over their dials at matched ID, and a sentence on what to use.

    Args:
        systems: every method at every value of its dial, on the same seeds.
    """
    chosen = selected(systems)
    base = next((system for system in chosen if system.base), chosen[0])
    parts = ["# Each method at the value of its dial that the hold-out chose", "", *_table(chosen, base)]
    curves = {
        typed: {
            seed: [(point["id"]["top1"], point["ood_avg"]) for point in (system.records[seed] for system in same)]
            for seed in same[0].records
        }
        for typed in dict.fromkeys(system.typed for system in systems)
        if len(same := [one for one in systems if one.typed == typed and one.mean("ood_avg") is not None]) > 1
    }
    if len(curves) > 1:
        matched = match(curves)
        parts += ["", "# Over their dials: OOD at matched ID", ""]
        first = next(iter(curves))
        parts.append(markdown(matched, first) if matched.shared else "The curves share no range of ID accuracy.\n")
    return "\n".join(parts).rstrip("\n") + "\n", sentence(chosen, base)


def _table(chosen: Sequence[System], base: System) -> list[str]:
    shifted, known = (any(one.mean(key) is not None for one in chosen) for key in ("ood_avg", "retention"))
    columns: dict[str, Callable[[System], str]] = {
        "system": lambda one: one.label,
        "hold-out": lambda one: _mean(one, "holdout"),
        "ID": lambda one: _mean(one, "id"),
        **({"OOD avg": lambda one: _mean(one, "ood_avg")} if shifted else {}),
        f"Δ ID to {base.label} [95%]": lambda one: _against(one, base, "id"),
        **({f"Δ OOD to {base.label} [95%]": lambda one: _against(one, base, "ood_avg")} if shifted else {}),
        **({"Δ knows": lambda one: _change(one)} if known else {}),
        "time a run": _time,
    }
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += [f"| {' | '.join(cell(one) for cell in columns.values())} |" for one in [*_zeroshot(chosen), *chosen]]
    return lines


def _zeroshot(chosen: Sequence[System]) -> list[System]:
    """The zero-shot model that the runs tell of, as a system; none where they have none."""
    block = chosen[0].run.record["zeroshot"]
    if block is None:
        return []
    told: dict[str, Any] = {"label": "zero-shot", "marker": {"colour": None, "shape": None}, "dial": None}
    empty = dict.fromkeys(("mask", "fill", "beta", "alpha", "temperature", "retention"))
    return [
        System("zeroshot", None, {seed: {**record, **record["zeroshot"], **empty, "display": told, "wall_s": None}
                                  for seed, record in chosen[0].records.items()})
    ]  # fmt: skip


def _mean(system: System, key: str) -> str:
    values = list(system.by_seed(key).values())
    if not values:
        return "–"
    mean, std = mean_std(values)
    return percent(mean) + ("" if std is None or system.typed == "zeroshot" else f" ± {percent(std)}")


def _change(system: System) -> str:
    mean = system.mean("retention")
    return "–" if mean is None else signed(mean)


def _time(system: System) -> str:
    seconds = [record["wall_s"] for record in system.records.values() if record["wall_s"] is not None]
    return f"{mean_std(seconds)[0]:,.0f} s" if seconds else "–"


def _against(system: System, base: System, key: str) -> str:
    return "–" if system is base else cells(system.minus(base, key))[0]


def sentence(chosen: Sequence[System], base: System) -> str:
    """What to use: of the methods that give up no more than a point of ID accuracy for certain, the most robust one.

    Without shifts the one that still knows most, without other tasks the most accurate. Those that the seeds do not
    tell from it are named.
    """
    fair = [one for one in chosen if not one.transductive] or chosen
    best = max(fair, key=lambda one: one.mean("id") or 0.0)
    near = [one for one in fair if one is best or _no_worse(one.minus(best, "id"))]
    key = next((k for k in ("ood_avg", "retention", "id") if all(one.mean(k) is not None for one in near)), "id")
    pick = max(near, key=lambda one: one.mean(key) or 0.0)
    zeroshot = next(iter(_zeroshot(chosen)), None)
    seeds = len(pick.records)
    if zeroshot is not None and (pick.mean("id") or 0.0) <= (zeroshot.mean("id") or 0.0):
        return (
            f"Use the zero-shot model as it is: the best of these, {pick.label}, has {_scores(pick)} and the zero-shot"
            f" model {_scores(zeroshot)}."
        )
    said = f"Use {pick.label}: {_scores(pick)}"
    if pick is not base:
        keys = {"id": "ID", "ood_avg": "OOD"}
        moves = [f"{name} {cells(found)[0]}" for k, name in keys.items() if (found := pick.minus(base, k)) is not None]
        said += f"; against {base.label} {', '.join(moves)} points"
    if (known := pick.mean("retention")) is not None:
        said += f"; of what it knew of other tasks {signed(known)} points against zero-shot"
    alike = [one.label for one in near if one is not pick and not _told(pick.minus(one, key))]
    if alike:
        said += f". {counted(seeds, 'seed')} {noun(seeds, 'does', 'do')} not tell it from {_listed(alike)}"
    few = " One seed proves little: --seeds 5." if seeds == 1 else ""
    dial = "" if pick.value is None else " The value of its dial was chosen on the hold-out."
    return f"{said}.{dial}{few}"


def _scores(system: System) -> str:
    named = {"ID": system.mean("id"), "OOD": system.mean("ood_avg")}
    return ", ".join(f"{name} {percent(value)}" for name, value in named.items() if value is not None)


def _no_worse(found: Difference | None) -> bool:
    """Whether a loss of more than the tolerance is not for certain."""
    return found is None or (found.mean if found.high is None else found.high) >= -TOLERANCE


def _told(found: Difference | None) -> bool:
    """Whether seeds tell two systems apart."""
    return found is not None and found.low is not None and (found.low > 0 or (found.high or 0.0) < 0)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
