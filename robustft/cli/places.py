"""Folders and files that data are read from, checked before anything heavy is imported: what a data class says of them.

takes:
  needs:                        # what it cannot do without
    data.root:
      or: data.sets.*           # all of these will do instead; "*": every setting there
      words: give the folder that holds the data sets
  places:                       # what is a place, and what is expected there
    data.root: {words: one folder per domain}
    data.shifts.*: {words: one folder per class, under: data.root, listed: true}  # may be looked at ahead
    data.path: {words: a table, kind: file}
    data.class_names: {words: JSON or CSV, kind: file, endings: [.json, .csv]}
    data.copies: {advice: what to do where it is not there}
    data.cache: {words: rendered scenes, only: "scenes*"}   # made where it is missing; may not hold anything else
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from robustft.common.errors import UserError
from robustft.common.paths import expand, located


def check(cfg: DictConfig) -> None:
    """Refuse data that lack a place they need, or that name one which is not there.

    Raises:
        UserError: names the setting, and says what to give.
    """
    takes = _takes(cfg)
    for name, need in (takes.get("needs") or {}).items():
        either = list(_matching(cfg, need["or"])) if "or" in need else []
        if _missing(cfg, name) and not (either and all(value is not None for _, value in either)):
            raise UserError(f"{name} is not set: {need['words']}")
    for pattern, place in (takes.get("places") or {}).items():
        for name, value in _matching(cfg, pattern):
            if isinstance(value, str) and not (cfg.prepare and place.get("made")):
                _check(name, value, place, cfg)


def class_folders(cfg: DictConfig) -> list[Path]:
    """The folders of class folders whose images are listed, all of them."""
    found = []
    for pattern, place in (_takes(cfg).get("places") or {}).items():
        for _, value in _matching(cfg, pattern) if place.get("listed") else ():
            if isinstance(value, str):
                found.append(_located(value, place, cfg))
    return found


def _takes(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg.data.get("takes") or OmegaConf.create({}), resolve=True)


def _missing(cfg: DictConfig, name: str) -> bool:
    return all(value is None for _, value in _matching(cfg, name))


def _matching(cfg: DictConfig, pattern: str) -> Iterator[tuple[str, Any]]:
    """(name, value) of a setting, or of every one in a place."""
    place, star, _ = pattern.partition(".*")
    found = OmegaConf.select(cfg, place)
    if not star:
        yield pattern, found
    elif isinstance(found, DictConfig):
        yield from ((f"{place}.{key!s}", value) for key, value in found.items())


def _check(name: str, value: str, place: Mapping[str, Any], cfg: DictConfig) -> None:
    path = _located(value, place, cfg)
    if "only" in place:
        if not path.absolute().parent.is_dir():
            raise UserError(
                f"{name}={value}: there is no folder {path.absolute().parent} to make it in. {place['advice']}"
            )
        inside = [entry.name for entry in path.iterdir()] if path.is_dir() else []
        if inside and not any(fnmatch(entry, place["only"]) for entry in inside):
            raise UserError(f"{name}={value}: it holds other things than {place['words']}")
        return
    is_file = place.get("kind") == "file"
    shown = value if path == expand(value) else f"{value} ({path})"
    if path.is_file() if is_file else path.is_dir():
        if "endings" in place and path.suffix.lower() not in place["endings"]:
            ends = f"it ends in {path.suffix}" if path.suffix else "its name has no ending"
            raise UserError(f"{name}={shown}: {ends}, expected {' or '.join(place['endings'])}: {place['words']}")
        return
    kind = "file" if is_file else "folder"
    other = f" (that is a {'folder' if is_file else 'file'})" if path.exists() else ""
    advice = place["advice"] if "advice" in place else f"Expected {place['words']}"
    raise UserError(f"{name}={shown}: no such {kind}{other}. {advice}")


def _located(value: str, place: Mapping[str, Any], cfg: DictConfig) -> Path:
    return located(value, OmegaConf.select(cfg, place["under"]) if "under" in place else None)
