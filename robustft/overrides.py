"""What was typed after `python run.py`: parsed, with the nearest valid names for what is not known."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from robustft import commands, configs, paths
from robustft.config import container, flatten
from robustft.configs import CONF, groups
from robustft.errors import UserError, install

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
    parser, parsed = OverridesParser.create(), []
    for argument in typed:
        try:
            override = parser.parse_override(argument)
        except (OverrideParseException, HydraException) as error:
            key, equals, value = argument.partition("=")
            if not equals:
                raise UserError(f"{argument!r} is no setting: write name=value, see --help") from error
            if not _is_plain_text(value):
                raise UserError(_needs_quotes(key, value)) from error
            override = parser.parse_override(f"{key}={paths.quote(value)}")
        if override.is_delete():
            raise UserError(f"{argument}: settings cannot be removed, set them to null")
        adds = override.is_add() or override.is_force_add()
        # Loggers take more than is listed; groups of the user's own are in no list yet.
        if adds and not override.key_or_group.startswith("logger.") and not configs.is_new_group(override.key_or_group):
            override = parser.parse_override(str(override.input_line).lstrip("+"))
        if override.key_or_group == "hydra.searchpath":
            raise UserError(f"{argument}: for configs of your own, give their folder: --config-dir DIR")
        parsed.append(override)
    return parsed


def _is_plain_text(value: str) -> bool:
    """Whether a value that Hydra's grammar cannot read can only be meant as it stands, as ~/Müller's (old) can.

    A comma may separate values, and brackets and '=' may be a mistyped list or function: these are text in paths only.
    """
    if "," in value or value.startswith(tuple("[{(\"'")):
        return False
    return "/" in value or not re.search(r"[=()\[\]{}]", value)


def _needs_quotes(key: str, value: str) -> str:
    found = re.search(r"[^\w/\-\\+.$%*@?|: ,]|[^\x00-\x7f]", value) or re.search(",", value)
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


def compose_first(overrides: Sequence[Override]) -> DictConfig:
    """The config with the first value of everything that is swept, `hydra` node included.

    Raises:
        UserError: an unknown setting or option (with the nearest ones), or a config that cannot be composed.
    """
    _check_options(overrides)
    lines = []
    for override in overrides:
        first = values(override)[:1]
        prefix = "+" if override.is_add() else ""
        lines += [f"{prefix}{override.get_key_element().lstrip('+')}={first[0]}"] if first else []
    places = [f"hydra.searchpath=[{paths.quote(f'file://{configs.added()}')}]"] if configs.added() else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        _check_plugins(overrides)
        try:
            return compose("config", [*places, *lines], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            options = [line for line in lines if is_group(line.split("=", 1)[0].lstrip("+"))]
            try:
                known = compose("config", [*places, *options])
            except (HydraException, OmegaConfBaseException):
                raise UserError(describe(error)) from error
            _check_names(overrides, known)
            raise UserError(describe(error)) from error


def is_group(key: str) -> bool:
    return key in groups() or key.startswith("hydra/")


def _check_options(overrides: Sequence[Override]) -> None:
    known = groups()
    for override in overrides:
        group = override.key_or_group
        for value in values(override) if group in known else []:
            if value not in known[group] and not (group == "experiment" and value == "null"):
                near = difflib.get_close_matches(value, known[group], n=1, cutoff=0.5)
                hint = f" Did you mean {group}={near[0]}?" if near else ""
                raise UserError(f"{group}={value}: no such option.{hint} Options: {', '.join(known[group])}")


def _check_plugins(overrides: Sequence[Override]) -> None:
    """Launchers and sweepers are Hydra's to know: those that are installed, and those of our extras."""
    loader = GlobalHydra.instance().config_loader()
    for override in overrides:
        group = override.key_or_group
        if group not in ("hydra/launcher", "hydra/sweeper"):
            continue
        known = sorted(loader.get_group_options(group, ObjectType.CONFIG))
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


def _check_names(overrides: Sequence[Override], known: DictConfig) -> None:
    names = list(groups()) + [name for name, _ in flatten(container(known, resolve=False))]
    for override in overrides:
        key = override.key_or_group
        if key.startswith(("hydra.", "hydra/")) or override.is_add() or is_group(key):
            continue
        if not _exists(known, key):
            near = nearest(key, names)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"unknown setting {key!r}.{hint} See {commands.program()} --help")


def nearest(key: str, names: Sequence[str]) -> list[str]:
    """Up to three names like a mistyped one: in the last part, else alike in whole, else in the last part."""
    last = key.rsplit(".", 1)[-1]
    exact = [name for name in names if name.endswith(f".{last}")]
    whole = difflib.get_close_matches(key, names, n=3, cutoff=0.7)
    tails: dict[str, list[str]] = {}
    for name in names:
        tails.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    alike = [name for tail in difflib.get_close_matches(last, tails, n=2, cutoff=0.6) for name in tails[tail]]
    return list(dict.fromkeys(exact or whole or alike))[:3]


def _exists(cfg: DictConfig, key: str) -> bool:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node.keys():  # noqa: SIM118 (`in` misses ???)
            return False
        node = node._get_node(part)
    return True


def describe(error: BaseException) -> str:
    """What Hydra or OmegaConf has to say, in one line."""
    text = str(error).split("Config search path")[0]
    if isinstance(error.__cause__, HydraException | OmegaConfBaseException):
        text = f"{text} {str(error.__cause__).splitlines()[0] if str(error.__cause__) else ''}"
    text = re.sub(r"https?://\S+", "", text)
    return " ".join(text.split())
