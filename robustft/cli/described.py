"""What components say of themselves in their YAML files, read before anything is composed."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from robustft.cli import sources
from robustft.cli.hydra_private import Override
from robustft.common.configs import flatten


def opens(name: str) -> bool:
    """Whether a setting is a new name where a component leaves room for some (`takes.open`), as data.shifts.mine is."""
    node, _, last = name.rpartition(".")
    return bool(last) and node in _open_places(sources.added())


def brought(overrides: Sequence[Override]) -> list[str]:
    """The options of other groups that a chosen component brings along (`takes.brings`) unless they are typed.

    A preset chooses for itself: nothing is added to `experiment=`.
    """
    typed = {override.key_or_group: override for override in overrides}
    if "experiment" in typed:
        return []
    wanted: dict[str, set[str]] = {}
    for group, override in typed.items():
        for option in options(override):
            for other, choice in (takes(group, option).get("brings") or {}).items():
                wanted.setdefault(other, set()).add(choice)
    return [f"{group}={choice}" for group, (choice, *more) in wanted.items() if group not in typed and not more]


def takes(group: str, option: str) -> dict[str, Any]:
    """The `takes` of a component, with those of the components of its group that it is made from."""
    read = _read(_path(group, option))
    found: dict[str, Any] = {}
    for default in read.get("defaults") or []:
        if isinstance(default, str) and default not in ("_self_", option):
            found |= takes(group, default)
    inside = read.get(group, {})  # of a file with settings of other groups too
    nodes = (read, read.get(option), inside, inside.get(option) if isinstance(inside, dict) else None)
    own = (node["takes"] for node in nodes if isinstance(node, dict) and isinstance(node.get("takes"), dict))
    return found | next(own, {})


def preset(option: str) -> dict[str, Any]:
    """What a preset of `experiment=` names: settings, what it sweeps, and options of groups by their group."""
    read = _read(_path("experiment", option))
    found: dict[str, Any] = {}
    for default in read.get("defaults") or []:
        if isinstance(default, str) and default not in ("_self_", option):
            found |= preset(default)
        for key, choice in default.items() if isinstance(default, dict) else ():
            found[re.sub(r"^override |[ /]", "", key)] = choice
    own = {key: value for key, value in read.items() if key not in ("defaults", "hydra")}
    swept = ((read.get("hydra") or {}).get("sweeper") or {}).get("params") or {}
    return found | dict(flatten(own)) | swept


def options(override: Override) -> list[str]:
    """The options of a group that an override names: several in a sweep."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    return list(override.sweep_string_iterator()) if override.is_choice_sweep() else []


def _path(group: str, option: str) -> Path | None:
    places = [place / group / f"{option}.yaml" for place in (sources.CONF, sources.added()) if place is not None]
    return next((path for path in places if path.is_file()), None)


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    return _parsed(path, path.stat().st_mtime_ns)


@cache
def _parsed(path: Path, _changed: int) -> dict[str, Any]:
    try:
        read = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):  # Hydra will say what is wrong with it
        return {}
    return read if isinstance(read, dict) else {}


@cache
def _open_places(_own: Path | None) -> frozenset[str]:
    """With the user's own folder of configs: it may be added later."""
    return frozenset(_all_open())


def _all_open() -> Iterator[str]:
    for group, options in sources.groups().items():
        for option in options:
            path = _path(group, option)
            if path is not None and "open:" in path.read_text("utf-8"):
                yield from takes(group, option).get("open") or ()
