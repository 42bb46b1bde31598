"""How scores are written for people: the table at a run's end, and the words and digits that reports share with it.

`percent` is the one place where accuracies are rounded.
"""

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustft.common import terminal
from robustft.common.wording import counted
from robustft.evaluation.results import average

# Of the sets that come with the product; sets of a user's own go by their names.
SET_LABELS = {
    "holdout": "Hold-out",
    "imagenet": "ImageNet",
    "objectnet": "ObjectNet",
    "scenes": "Scenes",
    "scenes_objectnet": "ObjectNet",
    **{f"{family}_{shift}": label for family in ("imagenet", "scenes")
       for shift, label in (("v2", "V2"), ("r", "R"), ("sketch", "Sketch"), ("a", "A"))},
}  # fmt: skip


def percent(fraction: float, decimals: int = 1) -> str:
    """Write a fraction in percent, ties rounded up as readers do: 0.0125 is 1.3 (Python's format says 1.2)."""
    step = Decimal(1).scaleb(-decimals)
    return str((Decimal(repr(round(float(fraction), 12))) * 100).quantize(step, rounding=ROUND_HALF_UP))


def signed(fraction: float) -> str:
    """Write a difference in percentage points with its sign."""
    text = percent(abs(fraction))
    return text if float(text) == 0 else f"{'+' if fraction > 0 else '−'}{text}"


def set_label(name: str) -> str:
    """Give a set's short heading: imagenet_v2 and scenes_v2 are "V2", imagenet is "ImageNet"."""
    return SET_LABELS.get(name, name)


def metric_value(value: float | None, unit: str) -> str:
    """Write a metric as it is shown: fractions in percent."""
    if value is None:
        return "–"
    return percent(value) if unit == "%" else f"{value:.3f}"


def metric_heading(told: Mapping[str, Any]) -> str:
    """Write a metric's label, unit and which way is better: "ECE, % ↓"."""
    better = {True: " ↑", False: " ↓", None: ""}[told["higher_is_better"]]
    unit = f", {told['unit']}" if told["unit"] else ""
    return f"{told['label']}{unit}{better}"


def summary_table(record: Mapping[str, Any], *, upright: bool = False) -> Table:
    """Zero-shot and this model on every set, in percent; ID and the shifts' average stand apart.

    Args:
        upright: a row for each set and a column for each model, for a narrow terminal.
    """
    columns = {f"ID {set_label(record['id']['name'])}": "bold"}
    columns |= {"OOD avg": "bold"} if record["ood"] else {}
    headings = [*columns, *map(set_label, record["ood"]), *(["hold-out"] if record["holdout"] else [])]
    styles = [*columns.values(), *[""] * len(record["ood"]), *(["dim"] if record["holdout"] else [])]
    rows = {record["method"]: record}
    if record["zeroshot"] and record["method"] != "zeroshot":
        rows = {"zero-shot": record["zeroshot"], **rows}
    cells = {}
    for label, block in rows.items():
        values = [block["id"]["top1"]]
        if record["ood"]:
            values += [block["ood_avg"], *(block["ood"].get(name, {}).get("top1") for name in record["ood"])]
        if record["holdout"]:
            values.append(block["holdout"]["top1"] if block["holdout"] else None)
        cells[label] = ["–" if value is None else percent(value) for value in values]
    table = Table(title=f"{escape(record['name'])}: top-1 accuracy in %", title_justify="left")
    if upright:
        for heading in ("set", *cells):
            table.add_column(heading, justify="left" if heading == "set" else "right")
        for heading, style, *values in zip(headings, styles, *cells.values(), strict=True):
            table.add_row(heading, *values, style=style)
    else:
        table.add_column("model")
        for heading, style in zip(headings, styles, strict=True):
            table.add_column(heading, justify="right", style=style)
        for label, values in cells.items():
            table.add_row(label, *values)
    if record["partial"]:
        counts = [record["id"]["n"], *(score["n"] for score in record["ood"].values())]
        least, most = min(counts), max(counts)
        span = ("" if least == most else f"{least:,} to ") + counted(most, "image")
        table.caption = f"Partial: {span} a set; not comparable with full evaluations."
    return table


def metrics_table(record: Mapping[str, Any]) -> Table:
    """Lay out what was measured beside top-1: zero-shot and this model, ID and on average over the shifts."""
    models = {"this": record}
    if record["zeroshot"] and record["method"] != "zeroshot":
        models = {"zero-shot": record["zeroshot"], **models}
    title = "Further metrics (OOD: mean of the shifts)" if record["ood"] else "Further metrics"
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    where = ["ID", *(["OOD"] if record["ood"] else [])]
    for place in where:
        for model in models:
            table.add_column(f"{place}: {model}", justify="right")
    for name, told in record["metrics"].items():
        values = [
            block["id"].get(name) if place == "ID" else average(block, name)
            for place in where
            for block in models.values()
        ]
        table.add_row(metric_heading(told), *(metric_value(value, told["unit"]) for value in values))
    return table


def retention_table(record: Mapping[str, Any]) -> Table:
    """Lay out what the model still knows: zero-shot and this model on every other task, their difference in points."""
    table = Table(title="Retention: other tasks, top-1 in %", title_justify="left")
    columns = {"task": list(record["retention"]), "zero-shot": [], record["method"]: [], "Δ": []}
    for one in record["retention"].values():
        columns["zero-shot"].append(percent(one["zeroshot_top1"]))
        if record["method"] != "zeroshot":
            columns[record["method"]].append(percent(one["top1"]))
            columns["Δ"].append(signed(one["top1"] - one["zeroshot_top1"]))
    own = [one["top1_own_text"] for one in record["retention"].values()]
    if any(value is not None for value in own):
        columns["its own text tower"] = ["–" if value is None else percent(value) for value in own]
    shown = {heading: cells for heading, cells in columns.items() if cells}
    for heading in shown:
        table.add_column(escape(heading), justify="left" if heading == "task" else "right")
    for row in zip(*shown.values(), strict=True):
        table.add_row(*map(escape, row))
    return table


def print_table(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print `summary_table(record)`, upright where it is wider than the terminal, and what else was measured."""
    console = console or terminal.console()
    table = summary_table(record)
    terminal.print_table(console, table if terminal.fits(console, table) else summary_table(record, upright=True))
    if record.get("metrics"):
        terminal.print_table(console, metrics_table(record))
    if record.get("retention"):
        terminal.print_table(console, retention_table(record))
