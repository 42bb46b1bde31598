"""How a setting is described: what it accepts, in a form that YAML can hold, and the same in words.

A description has a `kind` (number, the default; whole, flag, text; numbers, texts: a list of it; devices; anything),
or `of` (a list to choose from), or `any` (of several descriptions), or `match` (a pattern, with `words` for it); bounds
(`from`, `to` belong to the range, `above`, `below` do not); and `or_null`. `only` has values that other settings have
to allow: by value, what those are to be.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

Description = Mapping[str, Any]

FLAG: Description = {"kind": "flag"}
TEXT: Description = {"kind": "text", "or_null": True}
COUNT: Description = {"kind": "whole", "from": 1}
BATCHES: Description = {"any": [COUNT, {"above": 0, "to": 1}], "or_null": True}
NO_NEGATIVE: Description = {"kind": "whole", "from": 0}


def accepts(described: Description, value: Any) -> bool:
    """Whether ``value`` is one that a description allows."""
    if described.get("kind") == "anything":
        return True
    if value is None:
        return bool(described.get("or_null")) or None in described.get("of", ())
    if "any" in described:
        return any(accepts(one, value) for one in described["any"])
    if "of" in described:
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in described["of"])
    if "match" in described:
        return isinstance(value, str) and re.fullmatch(described["match"], value) is not None
    kind = described.get("kind", "number")
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "text":
        return isinstance(value, str) and value != ""
    if kind == "texts":
        return isinstance(value, list) and all(isinstance(one, str) and one for one in value)
    if kind == "devices":
        return _is_devices(value)
    if kind == "numbers":
        one = {**described, "kind": "number", "or_null": False}
        return isinstance(value, list) and bool(value) and all(accepts(one, item) for item in value)
    number = isinstance(value, int if kind == "whole" else int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and _within(described, value)


def _within(described: Description, value: float) -> bool:
    low, high = described.get("from", -math.inf), described.get("to", math.inf)
    return low <= value <= high and described.get("above", -math.inf) < value < described.get("below", math.inf)


def _is_devices(value: Any) -> bool:
    if isinstance(value, str) and re.fullmatch(r"\d+(,\d+)*,?", value):  # "2" devices, or "0,1,": those
        return int(value) > 0 if value.isdigit() else True
    if isinstance(value, list):
        distinct = len(set(map(repr, value))) == len(value)
        return bool(value) and distinct and all(accepts(NO_NEGATIVE, one) for one in value)
    return value in ("auto", "-1", -1) or accepts(COUNT, value)


def expected(described: Description) -> str:
    """Say what a description allows, in words."""
    return _words(described) + (", or null" if described.get("or_null") else "")


def _words(described: Description) -> str:
    kind = described.get("kind", "number")
    if "any" in described:
        either = " or ".join(_words(one) for one in described["any"] if one.get("of") != [-1])
        return described.get("words", "{}").format(either)
    if "match" in described:
        return described["words"]
    if "of" in described:
        options = list(dict.fromkeys(shown(one) for one in described["of"]))  # 32 and "32" are typed alike
        return "one of " + ", ".join(options) if len(options) > 1 else options[0]
    fixed = {
        "flag": "true or false",
        "text": "text",
        "texts": "a list of text",
        "devices": "auto, a whole number above 0, -1 (all), or a list",
    }
    if kind in fixed:
        return fixed[kind]
    if kind == "numbers":
        return f"a list, each of it {_words({**described, 'kind': 'number'})}"
    number = "a whole number" if kind == "whole" else "a number"
    bounds = {side: described[side] for side in ("from", "to", "above", "below") if side in described}
    match bounds:
        case {"above": low, "below": high}:
            return f"{number} between {low} and {high}, both excluded"
        case {"from": low, "to": high}:
            return f"{number} from {low} to {high}"
        case {"from": low, "below": high}:
            return f"{number}, {low} or more and below {high}"
        case {"above": low, "to": high}:
            return f"{number} above {low}, {high} at most"
        case {"from": low}:
            return f"{number}, {low} or more"
        case {"above": low}:
            return f"{number} above {low}"
    return number


def shown(value: Any) -> str:
    """Write a value as it is typed."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)
