"""Our results beside published ones of the same systems."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustft.common.errors import UserError
from robustft.evaluation.summary import percent, set_label, signed
from robustft.report.runs import Record
from robustft.report.stats import mean_std

SETS = ("imagenet", "imagenet_v2", "imagenet_r", "imagenet_sketch", "objectnet", "imagenet_a", "ood_avg")
SEED = re.compile(r"_seed-\d+$")


@dataclass(frozen=True)
class Published:
    """A published system: how a table calls it, with what sets it apart from ours, and its accuracies (fractions)."""

    label: str
    top1: dict[str, float]


def read(path: Path) -> dict[tuple[str, str], Published]:
    """By model and system, from a CSV with percents; what was not published is left out.

    In parentheses after a system is what is different about the published one.

    Raises:
        UserError: it cannot be read, lacks a column, or has a system twice.
    """
    found: dict[tuple[str, str], Published] = {}
    for number, row in enumerate(rows(path), 2):
        key = (row["model"], row["system"].partition(" (")[0])
        if key in found:
            raise UserError(f"{path}, line {number}: {' '.join(key)} is there twice. Give them two names")
        try:
            top1 = {name: float(row[name]) / 100 for name in SETS if row[name]}
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}. Expected percents") from error
        found[key] = Published(row["system"], top1)
    return found


def rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of such a CSV.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in ("model", "system", *SETS) if name not in (reader.fieldnames or ())]
            if lacking:
                raise UserError(f"{path} has no column {lacking[0]}. Expected model, system, {', '.join(SETS)}")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}). Expected a CSV of published numbers") from error


def beside(results: Mapping[str, Record], published: Mapping[tuple[str, str], Published]) -> str | None:
    """Write published, ours (mean over seeds) and the difference as Markdown, for the systems that were published.

    Args:
        results: by name, "<system>" or "<system>_seed-<n>".

    Returns:
        None where nothing of this model and of the official sets was published.
    """
    found: dict[tuple[str, str], list[Record]] = {}
    for name, record in results.items():
        key = (record["model"], SEED.sub("", name))
        if key in published and record["id"]["name"] == "imagenet":
            found.setdefault(key, []).append(record)
    if not found:
        return None
    heads = [set_label(name) if name != "ood_avg" else "OOD avg" for name in SETS]
    lines = [
        "Top-1 accuracy in %: published / ours (mean over seeds) / ours minus published, in points.",
        "",
        f"| model | system | seeds | {' | '.join(heads)} |",
        f"|---|---|---:|{'---:|' * len(heads)}",
    ]
    for (model, system), records in found.items():
        cells = []
        for name in SETS:
            theirs = published[model, system].top1.get(name)
            values = [value for record in records if (value := _top1(record, name)) is not None]
            ours = mean_std(values)[0] if values else None
            change = "–" if ours is None or theirs is None else signed(ours - theirs)
            cells.append(" / ".join([*("–" if value is None else percent(value) for value in (theirs, ours)), change]))
        lines.append(f"| {model} | {published[model, system].label} | {len(records)} | {' | '.join(cells)} |")
    if any(record["partial"] for records in found.values() for record in records):
        lines += ["", "Some of these evaluations were cut short: their accuracies are no results."]
    return "\n".join(lines) + "\n"


def _top1(record: Record, name: str) -> float | None:
    if name == "ood_avg":  # of the five sets that the published one is of, or not at all
        return record["ood_avg"] if set(SETS[1:-1]) <= set(record["ood"]) else None
    score = record["id"] if name == record["id"]["name"] else record["ood"].get(name)
    return None if score is None else score["top1"]
