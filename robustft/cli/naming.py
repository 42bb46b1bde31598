"""Run folders: how they are named.

    runs/<what it is>/<time>             a single run
    runs/sweeps/<name>/<what varies>     a run of a sweep; the same command finds the same folders again

Names hold letters, digits, dots, dashes and underscores only, because they are typed back as values of
settings (`checkpoint=...`), where Hydra's grammar does not take "=" or ",".
"""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from robustft.common.errors import UserError

RUNS = Path("runs")
SWEEPS = RUNS / "sweeps"
LONGEST = 48  # characters of a value in a folder's name
# A setting, or a method, that a name tells whole.
PLAIN = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_]+)*(=[A-Za-z0-9](?!.*(--|[-.]$))[A-Za-z0-9.-]*)?")


def slug(value: Any) -> str:
    """A value as part of a folder's name; long ones keep their end and a digest."""
    text = "null" if value is None else str(value)
    short = re.sub(r"[^A-Za-z0-9._]+", "-", text.strip("[]")).strip(".") or "empty"
    return short if len(short) <= LONGEST else f"{digest(text)}-{short[-LONGEST:].lstrip('-.')}"


def settings_name(settings: Sequence[str]) -> str:
    """Settings as a folder's name, another one for other settings.

    A digest of all is at its end where the name does not tell them whole: slashes and the like are lost (`photos` is
    not `/photos`), and of many settings there are those that fit (file systems take 255 bytes).
    """
    whole = "_".join(map(slug, settings))
    if len(whole) <= 3 * LONGEST and all(map(PLAIN.fullmatch, settings)):
        return whole
    return f"{whole[: 3 * LONGEST].rstrip('-._')}_{digest(' '.join(settings))}"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def name(cfg: DictConfig) -> str:
    """What a single run is, readable: method, mask and fill, what else is not as usual, model."""
    if cfg.check is not None:
        return f"check-{cfg.check}"
    unmasked = cfg.mask.kind == "none" or OmegaConf.select(cfg, "method.takes.masks") is False
    masks = [] if unmasked else [cfg.mask.kind, cfg.fill.kind]
    constraints = [name for name, node in cfg.constraint.items() if OmegaConf.is_dict(node)]
    usual = {"moving": "none", "train": "all", "recipe": "model"}
    parts = [cfg[group].name for group, name in usual.items() if cfg[group].name != name]
    return "_".join(slug(part) for part in (cfg.method.name, *masks, *constraints, *parts, cfg.model.name))


def new_folder(cfg: DictConfig) -> Path:
    """Creates the folder of a new single run; two that start in the same second get two."""
    parent = RUNS / name(cfg)
    parent.mkdir(parents=True, exist_ok=True)
    now = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for attempt in range(1, 1000):
        folder = parent / (now if attempt == 1 else f"{now}-{attempt}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise UserError(f"{parent}: no free name for a run folder at {now}")


def sweep_name(preset: str | None, swept: Sequence[str], constants: Sequence[str]) -> str:
    """Name of a sweep's folder: what is swept (or the preset), and a digest of what else was asked for."""
    what = slug(preset) if preset else "_".join(short_names(swept)) or "one"
    return f"{what}-{digest(' '.join(sorted(constants)))}" if constants else what


def short_names(keys: Sequence[str]) -> list[str]:
    """Last parts of dotted names, more of them where two would be the same."""
    last = [key.replace("/", ".").rsplit(".", 1)[-1] for key in keys]
    return [slug(key) if last.count(short) > 1 else short for key, short in zip(keys, last, strict=True)]


def job_name(swept: Sequence[str], groups: Sequence[str], several: Collection[str] = ()) -> str:
    """An OmegaConf expression for the name of a sweep's run: swept keys with their values, nothing else.

    It travels to the runs as a value of `hydra.sweep.subdir`, so runs in other processes agree on it.

    Args:
        several: groups that can have several options at once.
    """

    def value(key: str) -> str:
        if key in several:
            return f"${{members:${{{key}}}}}"
        return f"${{slug:${{{f'hydra:runtime.choices.{key}' if key in groups else key}}}}}"

    parts = [f"{short}-{value(key)}" for short, key in zip(short_names(swept), swept, strict=True)]
    return "_".join(parts) or "run"


def readable_name(values: Mapping[str, Any], swept: Sequence[str]) -> str:
    """The name that `job_name` gives to a sweep's run, from the values of what is swept; options of groups as text."""
    named = ((short, values[key]) for short, key in zip(short_names(swept), swept, strict=True))
    return "_".join(f"{short}-{_listed(value)}" for short, value in named) or "run"


def members(node: Mapping[str, Any]) -> str:
    """The options of a group that can have several, as part of a folder's name."""
    return "-".join(slug(name) for name, option in node.items() if isinstance(option, Mapping)) or "none"


def _listed(value: Any) -> str:
    if isinstance(value, str) and value.startswith("["):
        return "-".join(slug(name.strip()) for name in value.strip("[]").split(",") if name.strip()) or "none"
    return slug(value)
