"""Recipes of components: what ``recipe=published`` brings of a method's own, unless it is typed.

A recipe's YAML may name a block (``takes: {own: published}``) that the method and the constraints have in theirs:
options of groups, and settings by their full names. They stand as if they had been typed; core knows no numbers of
methods:

    takes:
      published: {augment: crop, schedule: warmup_cosine, optimizer.lr: 1.0e-5, trainer.max_epochs: 10}
"""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from omegaconf import DictConfig, OmegaConf

from robustft.cli import described, sources
from robustft.cli.accepted import shown
from robustft.cli.core_settings import CORE
from robustft.cli.hydra_private import Override
from robustft.cli.settings import Settings
from robustft.common.errors import UserError

# How a training goes, whatever the method: who types one of these leaves the recipe.
OF_RECIPE = re.compile(
    r"optimizer\..*|(schedule|augment)(\..*)?|data\.batch_size|trainer\.(max_epochs|max_steps|gradient_clip_(val|algorithm))"
)
TYPED = "typed"  # a recipe that is not as it was chosen
OWNERS = ("method", "constraint")  # groups whose components have recipes


def brought(overrides: Sequence[Override]) -> list[str]:
    """Settings of the chosen components' own recipes that neither the user nor a preset names.

    Raises:
        UserError: a component has no such recipe, or components that are swept have different ones.
    """
    typed = {override.key_or_group: override for override in overrides}
    preset = _preset(typed)
    recipes = _chosen("recipe", typed, preset)
    blocks = {own for recipe in recipes if (own := described.takes("recipe", recipe).get("own"))}
    if not blocks:
        return []
    if len(recipes) > 1:
        raise UserError(f"recipe={','.join(recipes)}: methods have settings of their own there. Start a sweep for each")
    (block,) = blocks
    methods, constraints = (_chosen(group, typed, preset) for group in ("method", "constraint"))
    found = [
        _block(block, f"recipe={recipes[0]}", method, _listed(constraint))
        for method, constraint in product(methods, constraints)
    ]
    for other in found[1:]:
        if name := next((name for name in {**found[0], **other} if found[0].get(name) != other.get(name)), None):
            raise UserError(f"recipe={recipes[0]}: what is swept differs there in {name}. Start a sweep for each")
    named = {*typed, *preset}
    return [f"{name}={shown(value)}" for name, value in found[0].items() if not _is_named(name, named)]


def _block(block: str, recipe: str, method: str, constraints: Sequence[str]) -> dict[str, Any]:
    """What a method's own recipe says; a constraint's wins over it."""
    found: dict[str, Any] = {}
    takes = described.takes("method", method)
    if takes and not takes.get("trains", True):
        return found  # a recipe means nothing to it, which is said elsewhere
    for group, name in (("method", method), *(("constraint", name) for name in constraints)):
        own = described.takes(group, name).get(block)
        if not isinstance(own, dict):
            raise UserError(
                f"{recipe}: {group}={name} has none. It stands in its YAML, takes: {{{block}: {{optimizer.lr: ...}}}};"
                " or choose recipe=common"
            )
        found |= own
    return found


def _is_named(name: str, named: set[str]) -> bool:
    """Whether a setting is named, or the component that it belongs to is another one."""
    group = name.partition(".")[0]
    return name in named or (name not in CORE and group not in OWNERS and group in named)


def _chosen(group: str, typed: Mapping[str, Override], preset: Mapping[str, Any]) -> list[str]:
    """Options of a group, several in a sweep: as typed, as the preset has it, or as usual."""
    if group in typed:
        return described.options(typed[group])
    if group in preset:
        return [str(preset[group])] if group == "constraint" else str(preset[group]).split(",")
    usual = OmegaConf.to_container(OmegaConf.load(sources.CONF / "config.yaml"), resolve=False)
    assert isinstance(usual, dict)
    found = next(entry[group] for entry in usual["defaults"] if isinstance(entry, dict) and group in entry)
    return ["[]" if found == [] else str(found)]


def _listed(option: str) -> list[str]:
    return [name for part in option.strip("[]").split(",") if (name := part.strip()) not in ("", "none")]


def _preset(typed: Mapping[str, Override]) -> dict[str, Any]:
    """What a chosen preset names: settings, and options of groups that it takes in the place of others."""
    found: dict[str, Any] = {}
    for option in described.options(typed["experiment"]) if "experiment" in typed else []:
        found |= described.preset(option)
    return found


def says(settings: Settings) -> dict[str, Any]:
    """The settings that the recipe of a composed config stands for, by name; options of groups by theirs."""
    return {**(settings.takes.get("recipe", {}).get("says") or {}), **_owned(settings)}


def is_brought(settings: Settings, name: str, value: str) -> bool:
    """Whether a setting stands, as it is typed, in a component's own recipe."""
    found = _owned(settings)
    return name in found and value == shown(found[name])


def _owned(settings: Settings) -> dict[str, Any]:
    """What the components' own recipes say, where these are asked for."""
    block = settings.takes.get("recipe", {}).get("own")
    found: dict[str, Any] = {}
    for owner in OWNERS:  # in their order: a constraint's wins, as in ``_block``
        for name, component in settings.takes.items():
            if block and name.partition(".")[0] == owner:
                found |= component.get(block) or {}
    return found


def in_use(cfg: DictConfig, typed: Sequence[Override]) -> str:
    """Which recipe a training is made by: the chosen one, or "typed" where something of it was typed otherwise.

    Args:
        cfg: a resolved config.
        typed: what was asked for it.
    """
    settings = Settings(cfg)
    said = says(settings)
    given = {override.key_or_group: override for override in typed}
    replaced = {name.partition(".")[0] for name in said if name not in CORE} - {*OWNERS}  # with a component of it
    names = [
        name for name in {**given, **_preset(given)} if name in said or name in replaced or OF_RECIPE.fullmatch(name)
    ]
    kept = all(name in said and said[name] == _value(settings, name) for name in names)
    return str(settings.values["recipe.name"]) if kept else TYPED


def _value(settings: Settings, name: str) -> Any:
    return settings.values[name] if name in settings.values else settings.chosen(name).partition("=")[2]
