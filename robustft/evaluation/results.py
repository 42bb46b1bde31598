"""`results.json`, what a finished run leaves for reports, and the table printed at its end.

All accuracies are fractions in 0…1, unrounded; `percent` is the one place where they are rounded for people.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustft.common import terminal
from robustft.common.errors import UserError
from robustft.common.files import write

SCHEMA = 2
PROTOCOL = tuple(
    "selection head templates candidates split augment schedule train recipe models_at_inference transductive"
    " test_set_used benchmark leaks".split()
)
MASK_KEYS = ("kind", "threshold", "rate", "cam", "source", "layers")

Number = int | float
_TYPES: dict[str, tuple[type, ...]] = {
    "schema": (int,),
    "name": (str,),
    "method": (str,),
    "model": (str,),
    "mask": (dict, type(None)),
    "fill": (str, type(None)),
    "beta": (int, float, type(None)),
    "alpha": (int, float, type(None)),
    "temperature": (int, float, type(None)),
    "seed": (int,),
    "partial": (bool,),
    "id": (dict,),
    "ood": (dict,),
    "ood_avg": (float, type(None)),
    "holdout": (dict, type(None)),
    "zeroshot": (dict, type(None)),
    "checkpoint": (str, type(None)),
    "wall_s": (int, float),
    "train_images_per_s": (int, float, type(None)),
    "config": (dict,),
    "versions": (dict,),
}
_SINCE_2: dict[str, tuple[type, ...]] = {
    **{"retention": (dict, type(None)), "calibration": (dict, type(None))},
    **dict.fromkeys(("settings", "display", "protocol", "metrics"), (dict,)),
}
SCHEMAS = (1, 2)
_MASK_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("kind", "cam", "source"), (str, type(None))),
    **dict.fromkeys(("threshold", "rate"), (int, float, type(None))),
    "layers": (int, type(None)),
}


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy (0…1) over `n` images, and further metrics by name; null where one cannot be had."""

    top1: float
    n: int
    more: Mapping[str, float | None] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"top1": self.top1, "n": self.n, **self.more}


@dataclass(frozen=True)
class Scores:
    """One model on the in-distribution set, the shift sets (in the contract's order) and the hold-out."""

    id_name: str
    id: Score
    ood: Mapping[str, Score] = field(default_factory=dict)
    holdout: Score | None = None

    @property
    def ood_avg(self) -> float | None:
        """Plain mean over the shift sets that were evaluated; None where there are none."""
        return sum(score.top1 for score in self.ood.values()) / len(self.ood) if self.ood else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": {"name": self.id_name, **self.id.as_dict()},
            "ood": {name: score.as_dict() for name, score in self.ood.items()},
            "ood_avg": self.ood_avg,
            "holdout": self.holdout.as_dict() if self.holdout else None,
        }


def results_record(
    scores: Scores,
    *,
    name: str,
    method: str,
    model: str,
    seed: int,
    partial: bool,
    wall_s: float,
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    zeroshot: Scores | None = None,
    mask: Mapping[str, Any] | None = None,
    fill: str | None = None,
    beta: Number | None = None,
    alpha: Number | None = None,
    temperature: Number | None = None,
    checkpoint: str | None = None,
    train_images_per_s: float | None = None,
    settings: Mapping[str, Any] | None = None,
    display: Mapping[str, Any] | None = None,
    protocol: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    calibration: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """The content of `results.json`.

    Args:
        mask: may carry more than the contract's keys (a config node): the rest is dropped, what lacks is null.
        checkpoint: relative to the run directory.
        settings: the system's own dials, by dotted name.
        display: label (without the values of dials), marker (colour, shape), dial and order: how reports show it.
        protocol: how it was trained and evaluated; keys of PROTOCOL, null where it is not known.
        metrics: by name the label, unit and higher_is_better of what scores hold beside top-1.
        calibration: temperature and zeroshot_temperature.
    """
    return {
        "schema": SCHEMA,
        "name": name,
        "method": method,
        "model": model,
        "mask": None if mask is None else {key: _plain(mask.get(key)) for key in MASK_KEYS},
        "fill": fill,
        "beta": beta,
        "alpha": alpha,
        "temperature": temperature,
        "seed": seed,
        "partial": partial,
        **scores.as_dict(),
        "zeroshot": zeroshot.as_dict() if zeroshot else None,
        "checkpoint": checkpoint,
        "wall_s": wall_s,
        "train_images_per_s": train_images_per_s,
        "retention": None,
        "calibration": None if calibration is None else _plain(calibration),
        "settings": _plain(settings or {}),
        "display": _plain(display or {"label": method, "marker": None, "dial": None}),
        "protocol": dict.fromkeys(PROTOCOL) | _plain(protocol or {}),
        "metrics": _plain(metrics or {}),
        "config": _plain(config),
        "versions": _plain(versions),
    }


def write_results(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write `record` so that the file is either complete or not there."""
    write(Path(path), json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a `results.json`.

    Raises:
        UserError: the file is missing, is no JSON, or is not what a finished run leaves.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"Cannot read {path}: {reason}. Expected the results.json of a run.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}). Expected the results.json of a run.") from error
    if fault := find_fault(record):
        raise UserError(f"{path} is not the results.json of a run: {fault}.")
    return record


def _refuse(constant: str) -> None:
    """Python would read NaN and Infinity, which are no JSON and no result."""
    raise ValueError(f"it holds {constant}")


def find_fault(record: Any) -> str | None:
    """What keeps `record` from being a results file, or None."""
    if not isinstance(record, dict):
        return f"it holds a {type(record).__name__}, expected an object"
    for key, types in _TYPES.items():
        if key not in record:
            return f"{key!r} is missing"
        if not _is_one_of(record[key], types):
            return f"{key!r} is {record[key]!r:.60}"
    for key, types in _MASK_TYPES.items() if record["mask"] else ():
        if not _is_one_of(record["mask"].get(key), types):
            return f"'mask.{key}' is {record['mask'][key]!r:.60}"
    if record["schema"] not in SCHEMAS:
        return f"its schema is {record['schema']}, this version reads {' and '.join(map(str, SCHEMAS))}"
    if record["schema"] > 1:
        for key, types in _SINCE_2.items():
            if not _is_one_of(record.get(key, ...), types):
                return f"{key!r} is {'missing' if key not in record else repr(record[key])[:60]}"
        for name, told in record["metrics"].items():
            if not isinstance(told, dict) or not {"label", "unit", "higher_is_better"} <= told.keys():
                return f"'metrics.{name}' is {told!r:.60}, expected label, unit and higher_is_better"
        if not isinstance(version := record["protocol"].get("benchmark"), str | None):
            return f"'protocol.benchmark' is {version!r:.60}"
        marker = record["display"].get("marker")
        if not isinstance(record["display"].get("label"), str) or not isinstance(marker, dict | None):
            return f"'display' is {record['display']!r:.60}, expected a label and a marker"
    blocks = {"": record} if record["zeroshot"] is None else {"": record, "zeroshot.": record["zeroshot"]}
    for where, block in blocks.items():
        if missing := [key for key in ("id", "ood", "ood_avg", "holdout") if key not in block]:
            return f"'{where}{missing[0]}' is missing"
        if not isinstance(block["ood"], dict):
            return f"'{where}ood' is {block['ood']!r:.60}"
        scores = {"id": block["id"], **{f"ood.{name}": score for name, score in block["ood"].items()}}
        if block["holdout"] is not None:
            scores["holdout"] = block["holdout"]
        for key, score in scores.items():
            found: dict[str, Any] = score if isinstance(score, dict) else {}
            top1, n = found.get("top1"), found.get("n")
            if not (_is_number(top1) and 0 <= top1 <= 1):
                return f"'{where}{key}.top1' is {top1!r:.60}, expected a fraction in 0…1"
            if not (_is_number(n) and n == int(n) and n >= 0):
                return f"'{where}{key}.n' is {n!r:.60}, expected a number of images"
            for metric, value in found.items():
                if metric != "name" and value is not None and not _is_number(value):
                    return f"'{where}{key}.{metric}' is {value!r:.60}, expected a number or null"
        average = block["ood_avg"]
        if block["ood"] and not (_is_number(average) and 0 <= average <= 1):
            return f"'{where}ood_avg' is {average!r:.60}, expected a fraction in 0…1"
    if not all(isinstance(block["id"].get("name"), str) for block in blocks.values()):
        return "'id.name' is missing"
    return None


def _is_one_of(value: Any, types: tuple[type, ...]) -> bool:
    """Of these types, finite, and true and false are no numbers."""
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) and not (isinstance(value, float) and not math.isfinite(value))


def _is_number(value: Any) -> TypeGuard[float]:
    return _is_one_of(value, (int, float))


def benchmark(record: Mapping[str, Any]) -> str | None:
    """Tell the version of a benchmark's pictures that a record was measured on; None where there are no versions."""
    first = {"scenes": "scenes-1"}  # before results said it
    return (record.get("protocol") or {}).get("benchmark") or first.get(record.get("id", {}).get("name"))


def percent(fraction: float, decimals: int = 1) -> str:
    """A fraction in percent with ties rounded up, as readers do: 0.0125 is 1.3 (Python's format says 1.2)."""
    step = Decimal(1).scaleb(-decimals)
    return str((Decimal(repr(round(float(fraction), 12))) * 100).quantize(step, rounding=ROUND_HALF_UP))


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


def set_label(name: str) -> str:
    """Short heading of an evaluation set: imagenet_v2 and scenes_v2 are "V2", imagenet is "ImageNet"."""
    return SET_LABELS.get(name, name)


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
        span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        table.caption = f"Partial: {span} images a set; not comparable with full evaluations."
    return table


def average(block: Mapping[str, Any], metric: str) -> float | None:
    """Plain mean of a metric over the shift sets; None where one of them lacks it."""
    values = [score.get(metric) for score in block["ood"].values()]
    return None if not values or None in values else sum(values) / len(values)


def metric_value(value: float | None, unit: str) -> str:
    """A metric as it is shown: fractions in percent."""
    if value is None:
        return "–"
    return percent(value) if unit == "%" else f"{value:.3f}"


def metric_heading(told: Mapping[str, Any]) -> str:
    """A metric's label, unit and which way is better: "ECE, % ↓"."""
    better = {True: " ↑", False: " ↓", None: ""}[told["higher_is_better"]]
    unit = f", {told['unit']}" if told["unit"] else ""
    return f"{told['label']}{unit}{better}"


def metrics_table(record: Mapping[str, Any]) -> Table:
    """What was measured beside top-1: zero-shot and this model on the ID set and on average over the shifts."""
    models = {"this": record}
    if record["zeroshot"] and record["method"] != "zeroshot":
        models = {"zero-shot": record["zeroshot"], **models}
    table = Table(title="Further metrics (OOD: mean of the shifts)", title_justify="left")
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


def print_table(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print `summary_table(record)`, upright where it is wider than the terminal, and what else was measured."""
    console = console or terminal.console()
    table = summary_table(record)
    terminal.print_table(console, table if terminal.fits(console, table) else summary_table(record, upright=True))
    if record.get("metrics"):
        terminal.print_table(console, metrics_table(record))


def _plain(value: Any) -> Any:
    """`value` in JSON's own types, recursively; anything else (paths, infinities, NaN) becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)
