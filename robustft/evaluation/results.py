"""`results.json`, what a finished run leaves for reports: scores, written and read.

All accuracies are fractions in 0…1, unrounded.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustft.common.errors import UserError
from robustft.common.files import write
from robustft.evaluation.schema import MASK_KEYS, PROTOCOL, SCHEMA, Number, find_fault


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
    retention: Mapping[str, Mapping[str, Any]] | None = None,
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
        retention: of each other task top1, zeroshot_top1, top1_own_text and n; see robustft/evaluation/retention.py.
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
        "retention": None if retention is None else _plain(retention),
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
    """Refuse NaN and Infinity, which Python would read: they are no JSON and no result."""
    raise ValueError(f"it holds {constant}")


def benchmark(record: Mapping[str, Any]) -> str | None:
    """Tell the version of a benchmark's pictures that a record was measured on; None where there are no versions."""
    first = {"scenes": "scenes-1"}  # before results said it
    return (record.get("protocol") or {}).get("benchmark") or first.get(record.get("id", {}).get("name"))


def average(block: Mapping[str, Any], metric: str) -> float | None:
    """Plain mean of a metric over the shift sets; None where one of them lacks it."""
    values = [score.get(metric) for score in block["ood"].values()]
    return None if not values or None in values else sum(values) / len(values)


def _plain(value: Any) -> Any:
    """`value` in JSON's own types, recursively; anything else (paths, infinities, NaN) becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)
