"""What a results.json holds, by version of its schema, and what keeps a file from being one."""

import math
from typing import Any, TypeGuard

from robustft.common.wording import short

SCHEMA = 2  # that is written
SCHEMAS = (1, 2)  # that are read
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
_MASK_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("kind", "cam", "source"), (str, type(None))),
    **dict.fromkeys(("threshold", "rate"), (int, float, type(None))),
    "layers": (int, type(None)),
}


def find_fault(record: Any) -> str | None:
    """Say what keeps `record` from being a results file; None: nothing."""
    if not isinstance(record, dict):
        return f"it holds a {type(record).__name__}, expected an object"
    if fault := _fault_of_keys(record):
        return fault
    blocks = {"": record} if record["zeroshot"] is None else {"": record, "zeroshot.": record["zeroshot"]}
    found = (_fault_of_scores(block, where) for where, block in blocks.items())
    if fault := next(filter(None, found), None):
        return fault
    if not all(isinstance(block["id"].get("name"), str) for block in blocks.values()):
        return "'id.name' is missing"
    return None


def _fault_of_keys(record: dict[str, Any]) -> str | None:
    """What is missing or of another type, scores apart."""
    for key, types in _TYPES.items():
        if key not in record:
            return f"{key!r} is missing"
        if not _is_one_of(record[key], types):
            return f"{key!r} is {_shown(record[key])}"
    for key, types in _MASK_TYPES.items() if record["mask"] else ():
        if not _is_one_of(record["mask"].get(key), types):
            return f"'mask.{key}' is {_shown(record['mask'][key])}"
    if record["schema"] not in SCHEMAS:
        return f"its schema is {record['schema']}, this version reads {' and '.join(map(str, SCHEMAS))}"
    if record["schema"] == 1:
        return None
    for key, types in _SINCE_2.items():
        if not _is_one_of(record.get(key, ...), types):
            return f"{key!r} is {'missing' if key not in record else _shown(record[key])}"
    for name, known in (record["retention"] or {}).items():
        if fault := _fault_of_retention(known):
            return f"'retention.{name}{fault}"
    for name, told in record["metrics"].items():
        if not isinstance(told, dict) or not {"label", "unit", "higher_is_better"} <= told.keys():
            return f"'metrics.{name}' is {_shown(told)}, expected label, unit and higher_is_better"
    if not isinstance(version := record["protocol"].get("benchmark"), str | None):
        return f"'protocol.benchmark' is {_shown(version)}"
    marker = record["display"].get("marker")
    if not isinstance(record["display"].get("label"), str) or not isinstance(marker, dict | None):
        return f"'display' is {_shown(record['display'])}, expected a label and a marker"
    return None


def _fault_of_scores(block: dict[str, Any], where: str) -> str | None:
    """What is wrong with the scores of one model; ``where`` is what comes before their names."""
    if missing := [key for key in ("id", "ood", "ood_avg", "holdout") if key not in block]:
        return f"'{where}{missing[0]}' is missing"
    if not isinstance(block["ood"], dict):
        return f"'{where}ood' is {_shown(block['ood'])}"
    scores = {"id": block["id"], **{f"ood.{name}": score for name, score in block["ood"].items()}}
    if block["holdout"] is not None:
        scores["holdout"] = block["holdout"]
    for key, score in scores.items():
        found: dict[str, Any] = score if isinstance(score, dict) else {}
        top1, n = found.get("top1"), found.get("n")
        if not (_is_number(top1) and 0 <= top1 <= 1):
            return f"'{where}{key}.top1' is {_shown(top1)}, expected a fraction in 0…1"
        if not (_is_number(n) and n == int(n) and n >= 0):
            return f"'{where}{key}.n' is {_shown(n)}, expected a number of images"
        for metric, value in found.items():
            if metric != "name" and value is not None and not _is_number(value):
                return f"'{where}{key}.{metric}' is {_shown(value)}, expected a number or null"
    average = block["ood_avg"]
    if block["ood"] and not (_is_number(average) and 0 <= average <= 1):
        return f"'{where}ood_avg' is {_shown(average)}, expected a fraction in 0…1"
    return None


def _fault_of_retention(known: Any) -> str | None:
    """What is wrong with what is known of a task, behind its name."""
    found: dict[str, Any] = known if isinstance(known, dict) else {}
    for key in ("top1", "zeroshot_top1", "top1_own_text"):
        value = found.get(key)
        if not (key == "top1_own_text" and value is None) and not (_is_number(value) and 0 <= value <= 1):
            return f".{key}' is {_shown(value)}, expected a fraction in 0…1"
    return None if _is_number(found.get("n")) else f".n' is {_shown(found.get('n'))}, expected a number of images"


def _shown(value: Any) -> str:
    return short(repr(value), 60)


def _is_one_of(value: Any, types: tuple[type, ...]) -> bool:
    """Of these types, finite, and true and false are no numbers."""
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) and not (isinstance(value, float) and not math.isfinite(value))


def _is_number(value: Any) -> TypeGuard[float]:
    return _is_one_of(value, (int, float))
