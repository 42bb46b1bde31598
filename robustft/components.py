"""What a config names, made: its data, its models, and components, which are given what they ask for by name."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig

from robustft.common import configs
from robustft.common.asking import given, lacking, refuse_unknown
from robustft.common.cache import cache_folder
from robustft.common.errors import UserError
from robustft.data.augment import Augment
from robustft.data.datamodule import RobustnessData
from robustft.evaluation.metrics import SetMetric
from robustft.models.classifier import Classifier
from robustft.models.zeroshot import Tokenizer, preprocess_of, zeroshot_classifier
from robustft.training.constraint import Constraint
from robustft.training.moving import Moving
from robustft.training.parts import Parts
from robustft.training.recipe import Recipe

HINT = "A module of your own has to lie beside the folder of --config-dir, or on PYTHONPATH"
DESCRIBES = ("name", "kind", "takes", "_target_")  # of a component's node: what is no setting


def component(group: str, node: Mapping[str, Any], offered: Mapping[str, Any]) -> Callable[[], Any]:
    """What makes the object or model that ``group._target_`` names, from its settings and what it asks for.

    Nothing is made yet, so that mistakes are told at once.

    Raises:
        UserError: it cannot be imported, asks for what there is not, or does not take a setting.
    """
    make = imported(f"{group}._target_", node["_target_"])
    settings = own_settings(node)
    if inspect.isabstract(make):
        lacks = ", ".join(sorted(vars(make)["__abstractmethods__"]))
        raise UserError(f"{group}._target_={node['_target_']}: it lacks {lacks}()")
    if asked := lacking(make, offered, settings):
        raise UserError(
            f"{group}._target_={node['_target_']}: it asks for {asked[0]!r}, which is no setting of {group} and nothing"
            f" that a run has ({', '.join(offered)})"
        )
    refuse_unknown(make, settings, group)
    return lambda: given(make, offered, settings)()


def own_settings(node: Mapping[str, Any]) -> dict[str, Any]:
    """A component's node without what only describes it."""
    return {key: value for key, value in node.items() if key not in DESCRIBES}


def imported(setting: str, target: str) -> Callable[..., Any]:
    """The class or function of that dotted name.

    Raises:
        UserError: there is none.
    """
    try:
        return get_object(target)
    except Exception as error:  # a module of the user's own may fail in any way
        why = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{setting}={target}: cannot be imported ({why}). {HINT}") from error


def make_backbone(model: DictConfig) -> Any:
    """What makes an image tower that is not open_clip's: "timm", or the user's own; None: it is open_clip's."""
    backbone = model.get("backbone")
    if backbone is None or backbone == "timm":
        return backbone
    node = {key: value for key, value in backbone.items() if key != "takes"}
    return component("model.backbone", node, {})


def make_zeroshot(
    model: DictConfig, data: RobustnessData, seed: int, pretrained: str | None = None, **options: Any
) -> Classifier:
    """The zero-shot model for the classes of ``data``.

    Args:
        model: the settings of it.
        pretrained: its weights, if not those of the settings.
        options: device, check and text, see ``zeroshot_classifier``.
    """
    return zeroshot_classifier(
        model.architecture,
        pretrained or model.pretrained,
        data.class_names,
        data.templates,
        seed=seed,
        tokenizer=make_tokenizer(model),
        cache=cache_folder() / "heads",
        backbone=make_backbone(model),
        **options,
    )


def make_tokenizer(model: DictConfig) -> Tokenizer | None:
    """The tokenizer of a model that has one of its own; None: it is open_clip's."""
    tokenizer = model.get("tokenizer")
    return instantiate(tokenizer) if tokenizer else None


def make_data(cfg: DictConfig) -> RobustnessData:
    """The configured data module.

    Raises:
        UserError: its class cannot be imported.
    """
    model = cfg.model
    preprocess = preprocess_of(model.architecture, model.pretrained, make_backbone(model))
    data = instantiated(configs.container(cfg.data, resolve=True), preprocess=preprocess, seed=cfg.seed)
    if cfg.augment.kind is not None:
        chosen = configs.container(cfg.augment, resolve=True)
        data.augment = Augment(**{key: value for key, value in chosen.items() if key not in DESCRIBES})
    return data


def instantiated(options: Mapping[str, Any], **given: Any) -> RobustnessData:
    """Make the data of a run from its config.

    Args:
        options: `_target_`, the class, and its arguments.
        given: arguments that are no settings.

    Raises:
        UserError: there is no such class, it is no `RobustnessData`, or it does not take these arguments.
    """
    target, who = options["_target_"], f"data._target_={options['_target_']}"
    try:
        made: Any = instantiate({"_target_": "hydra.utils.get_object", "path": target})
    except Exception as error:  # whatever a module of a user's own raises when it is imported
        cause = error.__cause__ or error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(f"{who}: cannot be imported ({' '.join(str(cause).split())}). {HINT}") from error
    if not (isinstance(made, type) and issubclass(made, RobustnessData)):
        raise UserError(f"{who}: expected a class that extends RobustnessData (robustft/data/datamodule.py)")
    if missing := sorted(getattr(made, "__abstractmethods__", ())):
        raise UserError(f"{who}: it lacks {', '.join(missing)}(); see robustft/data/datamodule.py")
    try:
        inspect.signature(made).bind(**{key: value for key, value in options.items() if key != "_target_"}, **given)
    except TypeError as error:
        raise UserError(f"{who}: {error}. Its __init__ takes every key of its config, and **options") from error
    return instantiate(dict(options), _partial_=True, _convert_="all")(**given)


def make_constraints(cfg: DictConfig, inputs: Mapping[str, Any]) -> list[Constraint]:
    """The configured constraints, in the order in which they are listed."""
    chosen = {name: node for name, node in configs.plain(cfg)["constraint"].items() if isinstance(node, Mapping)}
    return [component(f"constraint.{name}", node, inputs)() for name, node in chosen.items()]


def make_metrics(cfg: DictConfig, inputs: Mapping[str, Any]) -> Callable[[], dict[str, SetMetric]]:
    """What makes the configured metrics, anew at every call."""
    chosen = configs.plain(cfg)["metric"]
    makers = {name: component(f"metric.{name}", node, inputs) for name, node in chosen.items()}
    return lambda: {name: make() for name, make in makers.items()}


def make_moving(cfg: DictConfig) -> Moving | None:
    """The configured average of the weights."""
    node = configs.plain(cfg)["moving"]
    if "_target_" not in node:
        return None
    rule, settings = imported("moving._target_", node["_target_"]), own_settings(node)
    teaches = bool(settings.pop("teaches", True))
    refuse_unknown(rule, settings, "moving")
    return Moving(partial(rule, **settings), teaches, cfg.result == "average")


def make_parts(cfg: DictConfig) -> Parts:
    """Which weights are trained, as configured."""
    node = configs.plain(cfg)["train"]
    return component("train", node, {})() if "_target_" in node else Parts()


def make_recipe(cfg: DictConfig) -> Recipe:
    """The configured optimiser settings and schedule."""
    plain = configs.plain(cfg)
    schedule = imported("schedule._target_", plain["schedule"]["_target_"])
    settings = own_settings(plain["schedule"])
    refuse_unknown(schedule, settings, "schedule")
    return Recipe(plain["optimizer"], partial(schedule, **settings))
