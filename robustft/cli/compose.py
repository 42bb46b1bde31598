"""What was typed after `python run.py`: parsed, with the nearest valid names for what is not known."""

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from robustft.cli import described, hydra_private, recipes, sources
from robustft.cli.core_settings import REFUSED, spelled
from robustft.cli.hydra_private import IntervalSweep, Override
from robustft.cli.sources import CONF, groups
from robustft.common import entry, paths
from robustft.common.configs import container, flatten
from robustft.common.errors import UserError, install
from robustft.common.wording import first_line

# Extras that bring launchers and sweepers along.
EXTRAS = {
    "hydra/launcher": {
        "local": "joblib",
        "joblib": "joblib",
        "slurm": "submitit",
        "submitit_slurm": "submitit",
        "submitit_local": "submitit",
    }
}


def parse(typed: Iterable[str]) -> list[Override]:
    """Parses `name=value` arguments.

    Raises:
        UserError: one cannot be read, or would add or remove a setting.
    """
    read, parsed = hydra_private.override_reader(), []
    for argument in typed:
        try:
            override = read(argument)
        except (OverrideParseException, HydraException) as error:
            key, equals, value = argument.partition("=")
            if not equals:
                raise UserError(f"{argument!r} is no setting: write name=value, see --help") from error
            quoted = _quoted(value)
            if quoted is None:
                raise UserError(_needs_quotes(key, value)) from error
            try:
                override = read(f"{key}={quoted}")
            except (OverrideParseException, HydraException) as of_key:
                raise UserError(f"{argument!r} is no setting: {key!r} cannot be a name, see --help") from of_key
        if override.is_delete():
            raise UserError(f"{argument}: settings cannot be removed, set them to null")
        adds = override.is_add() or override.is_force_add()
        # Loggers take more than is listed; groups of the user's own are in no list yet.
        if adds and not override.key_or_group.startswith("logger.") and not sources.is_new_group(override.key_or_group):
            override = read(str(override.input_line).lstrip("+"))
        if described.opens(override.key_or_group):  # a name of the user's own
            override = read(f"++{str(override.input_line).lstrip('+')}")
        elif (whole := spelled(override.key_or_group)) is not None:
            override = read(f"++{whole}={str(override.input_line).partition('=')[2]}")
        if override.key_or_group == "hydra.searchpath":
            raise UserError(f"{argument}: for configs of your own, give their folder: --config-dir DIR")
        parsed.append(override)
    return parsed


def _quoted(value: str) -> str | None:
    """A value that Hydra's grammar cannot read, in quotes; each of several, and of a list, by itself.

    None where it may be a mistyped list, function or setting rather than text, as ~/Müller's (old) can be.
    """
    whole = re.fullmatch(r"\[([^\[\]]*)\]", value)
    parts = (whole[1] if whole else value).split(",")
    if not all(map(_is_plain_text, map(str.strip, parts))):
        return None
    # What Hydra reads as it is stays what it is, a number or null.
    quoted = ",".join(
        part if re.fullmatch(r"[\w./-]+", part, re.ASCII) else paths.quote(part.strip()) for part in parts
    )
    return f"[{quoted}]" if whole else quoted


def _is_plain_text(value: str) -> bool:
    """Whether a value can only be meant as it stands: brackets and '=' are text in paths, as "(old)" is."""
    if not value or value.startswith(tuple("[{(\"'")):
        return False
    return "/" in value or not re.search(r"[=\[\]{}]|\w\(|\)\w|^[^(]*\)", value)


def _needs_quotes(key: str, value: str) -> str:
    found = re.search(r"[,=()\[\]{}'\"]", value) or re.search(r"[^\w/\-\\+.$%*@?|: ]|[^\x00-\x7f]", value)
    what = f"it holds {found[0]!r}. " if found else ""
    return f"cannot read {key + '=' + value!r}: {what}If that is text, put it in quotes: {paths.typed(key, value)}"


def values(override: Override) -> list[str]:
    """The values of an override as they are typed: several in a sweep, none where a sweeper draws them."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    try:
        return list(override.sweep_string_iterator())
    except HydraException:  # an interval, or a glob over options
        return []


def options(override: Override) -> list[str]:
    """The options of a group that an override names: several in a sweep, and where a group can have several."""
    return [name.strip() for value in values(override) for name in value.strip("[]").split(",") if name.strip()]


def complete(overrides: Sequence[Override]) -> list[Override]:
    """What was typed, with what it brings along: data=folders a model for photographs, recipe=published its settings.

    Raises:
        UserError: a component has no recipe of its own, and one is asked for.
    """
    overrides = [*parse(described.brought(overrides)), *overrides]
    return [*parse(recipes.brought(overrides)), *overrides]


def compose_first(overrides: Sequence[Override]) -> DictConfig:
    """The config with the first value of everything that is swept, `hydra` node included.

    Raises:
        UserError: an unknown setting or option (with the nearest ones), or a config that cannot be composed.
    """
    _check_options(overrides)
    lines = []
    for override in complete(overrides):
        first = values(override)[:1]
        prefix = "++" if override.is_force_add() else "+" if override.is_add() else ""
        lines += [f"{prefix}{override.get_key_element().lstrip('+')}={first[0]}"] if first else []
    places = [f"hydra.searchpath=[{paths.quote(f'file://{sources.added()}')}]"] if sources.added() else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        _check_plugins(overrides)
        try:
            cfg = compose("config", [*places, *lines], return_hydra_config=True)
            _check_preset(cfg, places)
            return cfg
        except YAMLError as error:
            raise UserError(f"a config cannot be read: {' '.join(str(error).split())}") from error
        except (HydraException, OmegaConfBaseException) as error:
            options = [line for line in lines if is_group(line.split("=", 1)[0].lstrip("+"))]
            try:
                known = compose("config", [*places, *options])
            except (HydraException, OmegaConfBaseException):
                raise UserError(describe(error)) from error
            _check_names(overrides, known)
            raise UserError(describe(error)) from error


@dataclass(frozen=True)
class Job:
    """One of the configs that several values make.

    Attributes:
        choices: the value of each setting that has several.
    """

    cfg: DictConfig
    choices: dict[str, Any]


def jobs(overrides: Sequence[Override]) -> list[Job]:
    """Every combination of the values of swept settings, in the order in which Hydra's sweeper makes them.

    Of what is drawn from an interval its ends stand for all.

    Raises:
        UserError: a config cannot be composed.
    """
    last = {override.key_or_group: override for override in overrides}
    swept = {key: _ends(override) for key, override in last.items() if override.is_sweep_override()}
    fixed = [str(override.input_line) for override in last.values() if not override.is_sweep_override()]
    made = [dict(zip(swept, choice, strict=True)) for choice in itertools.product(*swept.values())]
    cfgs = composed([[*fixed, *(f"{key}={value}" for key, value in choices.items())] for choices in made])
    return [
        Job(cfg, {key: v if is_group(key) else OmegaConf.select(cfg, key) for key, v in choices.items()})
        for cfg, choices in zip(cfgs, made, strict=True)
    ]


def composed(typed: Sequence[Sequence[str]]) -> list[DictConfig]:
    """The configs that lists of settings make, without their `hydra` node.

    They are composed once for every combination of groups: the other settings are put in, in a tenth of the time.

    Raises:
        UserError: a config cannot be composed.
    """
    bases: dict[tuple[str, ...], DictConfig] = {}
    made = []
    for settings in typed:
        parsed = parse(settings)
        chosen = tuple(str(o.input_line) for o in parsed if is_group(o.key_or_group) or o.is_add())
        if chosen not in bases:
            bases[chosen] = compose_first(parse(chosen))
            with open_dict(bases[chosen]):
                bases[chosen].pop("hydra", None)
        _check_names(parsed, bases[chosen])
        cfg = deepcopy(bases[chosen])
        for override in parsed:
            name = override.key_or_group
            if not (is_group(name) or override.is_add() or name.startswith("hydra.")):
                with open_dict(cfg):
                    OmegaConf.update(cfg, name, override.value(), merge=True)
        made.append(cfg)
    return made


def _ends(override: Override) -> list[str]:
    value = override.value()
    return [str(value.start), str(value.end)] if isinstance(value, IntervalSweep) else values(override)


def listed(*, _root_: DictConfig) -> str:
    """All settings as --help lists them: without what components say of themselves."""
    plain = {key: value for key, value in container(_root_, resolve=False).items() if key != "hydra"}
    return OmegaConf.to_yaml(OmegaConf.create(plain)).replace("$", "$$")  # it becomes part of a template


def texts(overrides: Iterable[Override]) -> dict[str, str]:
    """What was typed, by name, as it was typed."""
    return {override.key_or_group: str(override.input_line).partition("=")[2] for override in overrides}


def is_group(key: str) -> bool:
    return key in _group_names(sources.added()) or key.startswith("hydra/")


@cache
def _group_names(_own: Path | None) -> set[str]:
    """With the user's own folder of configs: it may be added later."""
    return set(groups())


def _check_options(overrides: Sequence[Override]) -> None:
    known = groups()
    for override in overrides:
        group = override.key_or_group
        for value in options(override) if group in known else []:
            if value not in known[group] and not (group == "experiment" and value == "null"):
                near = difflib.get_close_matches(value, known[group], n=1, cutoff=0.5)
                hint = f" Did you mean {group}={near[0]}?" if near else ""
                raise UserError(f"{group}={value}: no such option.{hint} Options: {', '.join(known[group])}")


def _check_plugins(overrides: Sequence[Override]) -> None:
    """Launchers and sweepers are Hydra's to know: those that are installed, and those of our extras."""
    for override in overrides:
        group = override.key_or_group
        if group not in ("hydra/launcher", "hydra/sweeper"):
            continue
        known = hydra_private.options_there(group)
        extras = EXTRAS.get(group, {})
        for value in values(override):
            extra = extras.get(value)
            if value not in known and extra is None:
                names = sorted({*known, *extras})
                near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
                hint = f" Did you mean {group}={near[0]}?" if near else ""
                raise UserError(f"{group}={value}: no such option.{hint} Options: {', '.join(names)}")
            needed = {"joblib": "joblib", "submitit": "submitit_slurm"}.get(extra or "")
            if needed and needed not in known:
                raise UserError(f"{group}={value} is an extra: {install(str(extra))}")


def _check_preset(cfg: DictConfig, places: Sequence[str]) -> None:
    """Refuses a preset of the user's own that sets what nobody has: a misspelt name would be lost without a word."""
    choices = cfg.hydra.runtime.choices
    preset = choices.get("experiment")
    if preset is None or (CONF / "experiment" / f"{preset}.yaml").is_file():
        return
    chosen = [
        f"{'+' * sources.is_new_group(group)}{group}={choices[group]}"
        for group in choices
        if "/" not in group and group != "experiment"
    ]
    names = [name for name, _ in flatten(container(compose("config", [*places, *chosen]), resolve=False))]
    plain = {key: value for key, value in container(cfg, resolve=False).items() if key != "hydra"}
    for name, _ in flatten(plain):
        inside = name.startswith("logger.") or any(known.startswith(f"{name}.") for known in names)
        if name not in names and not inside:  # loggers take more than is listed
            near = nearest(name, names)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"experiment={preset}: unknown setting {name!r} in it.{hint}")


def _check_names(overrides: Sequence[Override], known: DictConfig) -> None:
    names = list(groups()) + [name for name, _ in flatten(container(known, resolve=False))]
    for override in overrides:
        key = override.key_or_group
        adds = override.is_add() or override.is_force_add()
        if key.startswith(("hydra.", "hydra/")) or adds or is_group(key):
            continue
        if not _exists(known, key):
            if key in REFUSED:
                raise UserError(f"{key}: {REFUSED[key]}")
            raise UserError(f"unknown setting {key!r}.{_hint(key, names)} See {entry.program()} --help")


def _hint(key: str, names: Sequence[str]) -> str:
    """What may have been meant by a setting that is not there."""
    group, _, rest = key.partition(".")
    if rest and group in groups():  # another option of the group may have it
        having = [option for option in groups()[group] if _has(group, option, rest)]
        if having:
            return f" It belongs to {' and '.join(f'{group}={option}' for option in having)}, which is not chosen."
    if near := nearest(key, names):
        return f" Did you mean {' or '.join(near)}?"
    return "" if rest else f" A group of your own comes with --config-dir DIR, as DIR/{key}/NAME.yaml."


def _has(group: str, option: str, setting: str) -> bool:
    """Whether an option's own file has a setting."""
    places = [place / group / f"{option}.yaml" for place in (CONF, sources.added()) if place is not None]
    node = next((OmegaConf.load(path) for path in places if path.is_file()), None)
    if not isinstance(node, DictConfig) or setting.startswith("takes"):
        return False
    return _exists(node, setting) or _exists(node, f"{group}.{setting}")  # as in conf/model, which bring other groups


def nearest(key: str, names: Sequence[str]) -> list[str]:
    """Up to three names like a mistyped one: in the last part, else alike in whole, else in the last part."""
    last = key.rsplit(".", 1)[-1]
    exact = [name for name in names if name.endswith(f".{last}")]
    whole = difflib.get_close_matches(key, names, n=3, cutoff=0.7)
    tails: dict[str, list[str]] = {}
    for name in names:
        tails.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    alike = [name for tail in difflib.get_close_matches(last, tails, n=2, cutoff=0.7) for name in tails[tail]]
    return list(dict.fromkeys(exact or whole or alike))[:3]


def _exists(cfg: DictConfig, key: str) -> bool:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node.keys():  # noqa: SIM118 (`in` misses ???)
            return False
        node = hydra_private.as_written(node, part)
    return True


def describe(error: BaseException) -> str:
    """What Hydra or OmegaConf has to say, in one line."""
    text = str(error).split("Config search path")[0]
    if isinstance(error.__cause__, HydraException | OmegaConfBaseException):
        text = f"{text} {first_line(error.__cause__) if str(error.__cause__) else ''}"
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]} has no value: pass {missing[1]}=..."
    text = re.sub(r"https?://\S+", "", text)
    return " ".join(text.split())
