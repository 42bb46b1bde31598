"""Whether a run helped, in one sentence: what it gained and lost against the zero-shot model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustft.evaluation.summary import percent, set_label, signed

Z = 1.96  # of a 95% interval


@dataclass(frozen=True)
class Change:
    """A mean accuracy over sets before and after, in 0…1, and what chance alone moves their difference by (95%).

    The spread is that of drawing the images: √Σ (v₀ + v₁) over the sets, divided by their number, with the variance v
    of Agresti and Caffo (The American Statistician 54, 2000): one right and one wrong answer are added to those of each
    model, p̃ = (np + 1)/(n + 2), v = p̃(1−p̃)(n + 2)/n². So it is never 0: of few images, or where all or none are right,
    p(1−p)/n would say that nothing is left to chance. It takes the two models for independent; on the same images they
    are less far apart by chance, so what is called a gain here is one.
    """

    before: float
    after: float
    chance: float

    @classmethod
    def of(cls, sets: Sequence[tuple[float, float, int]]) -> "Change":
        """Of (before, after, images) of each set."""
        before, after = (sum(values) / len(sets) for values in list(zip(*sets, strict=True))[:2])
        variance = sum(_variance(p, n) + _variance(q, n) for p, q, n in sets)
        return cls(before, after, min(1.0, Z * math.sqrt(variance) / len(sets)))

    @property
    def direction(self) -> int:
        """1 where it rose, −1 where it fell, 0 where chance may have moved it."""
        difference = self.after - self.before
        return 0 if abs(difference) <= self.chance else 1 if difference > 0 else -1

    def words(self) -> str:
        """As "64.2 → 82.3 (+18.1)", with what chance does where that may be all."""
        move = signed(self.after - self.before)
        within = f", chance moves it by {percent(self.chance)}" if self.direction == 0 else ""
        return f"{percent(self.before)} → {percent(self.after)} ({move}{within})"


def _variance(accuracy: float, images: int) -> float:
    n = max(images, 1)
    shrunk = (n * accuracy + 1) / (n + 2)
    return shrunk * (1 - shrunk) * (n + 2) / n**2


def changes(record: Mapping[str, Any]) -> dict[str, Change]:
    """ID, OOD average and mean retention against the zero-shot model, those that there are."""
    zeroshot, found = record["zeroshot"], {}
    if zeroshot is not None:
        found["ID"] = Change.of([(zeroshot["id"]["top1"], record["id"]["top1"], record["id"]["n"])])
        both = [name for name in record["ood"] if name in zeroshot["ood"]]
        if both:
            pairs = [(zeroshot["ood"][name]["top1"], record["ood"][name]) for name in both]
            found["OOD"] = Change.of([(before, after["top1"], after["n"]) for before, after in pairs])
    if record.get("retention"):
        tasks = record["retention"].values()
        found["retention"] = Change.of([(one["zeroshot_top1"], one["top1"], one["n"]) for one in tasks])
    return found


def verdict(record: Mapping[str, Any]) -> str:
    """Say whether a run helped: ID, OOD and retention against the zero-shot model, in %.

    Args:
        record: the content of a results.json.
    """
    cut = " (a partial evaluation)" if record["partial"] else ""
    if record["method"] == "zeroshot" or record["zeroshot"] is None:
        scores = [f"ID {percent(record['id']['top1'])}"]
        scores += [f"OOD {percent(record['ood_avg'])}"] if record["ood"] else []
        known = (record.get("retention") or {}).values()
        scores += [f"retention {percent(sum(one['top1'] for one in known) / len(known))}"] if known else []
        why = "The zero-shot model itself" if record["zeroshot"] else "No zero-shot model to compare with"
        return f"{why}{cut}: {', '.join(scores)}."
    found = changes(record)
    told = ", ".join(f"{what} {change.words()}" for what, change in found.items())
    return f"{_headline({what: change.direction for what, change in found.items()})}{cut}: {told}.{_forgotten(record)}"


def _headline(moved: Mapping[str, int]) -> str:
    """Whether it helped, from the direction of each."""
    losses = {"OOD": "robustness", "retention": "what the model knew of other tasks"}
    lost = " and ".join(words for what, words in losses.items() if moved.get(what) == -1)
    if moved["ID"] == 1:
        where = "It helped on ID and under shift" if moved.get("OOD") == 1 else "It helped on ID"
        if lost:
            return f"{where}, at the cost of {lost}"
        return where if len(moved) == 1 else f"{where}, and no loss is told from chance"
    if moved["ID"] == -1:
        return "It did not help: ID fell" + (f", and so did {lost}" if lost else "")
    if moved.get("OOD") == 1:
        return "It helped under shift, and left ID as it was" + (f", at the cost of {lost}" if lost else "")
    return (
        f"It did not help: ID is as it was, and it cost {lost}" if lost else "It changed nothing that chance would not"
    )


def _forgotten(record: Mapping[str, Any]) -> str:
    """The task and the shift that lost most, where one did."""
    losses = []
    for place, label in (("retention", "Forgotten most"), ("ood", "Lost most under")):
        falls = {}
        for name, one in (record.get(place) or {}).items():
            zeroshot = (
                {"top1": one.get("zeroshot_top1")} if place == "retention" else record["zeroshot"]["ood"].get(name)
            )
            if zeroshot is not None:
                falls[name] = Change.of([(zeroshot["top1"], one["top1"], one["n"])])
        worst = min(falls, key=lambda name: falls[name].after - falls[name].before, default=None)
        if worst is not None and len(falls) > 1 and falls[worst].direction == -1:
            losses.append(f" {label}: {set_label(worst)} ({signed(falls[worst].after - falls[worst].before)}).")
    return "".join(losses)
