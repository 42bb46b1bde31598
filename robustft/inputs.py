"""What a run has to offer to its method and its constraints: they are given what their parameters are named after."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig

from robustft.cli.settings import Settings
from robustft.common import configs
from robustft.common.asking import given, lacking, refuse_unknown
from robustft.common.cache import cache_folder
from robustft.common.errors import UserError
from robustft.common.paths import expand
from robustft.data.augment import Augment
from robustft.data.datamodule import RobustnessData
from robustft.evaluation.evaluate import evaluate
from robustft.evaluation.metrics import SetMetric
from robustft.models.classifier import Classifier, check_can
from robustft.models.files import model_files
from robustft.models.weights import load_classifier
from robustft.models.zeroshot import preprocess_of, zeroshot_classifier
from robustft.training.constraint import Constraint
from robustft.training.recipe import Recipe

HINT = "A module of your own has to lie beside the folder of --config-dir, or on PYTHONPATH"
DESCRIBES = ("name", "kind", "takes", "_target_")  # of a component's node: what is no setting


class Inputs(Mapping[str, Any]):
    """What there is to ask for, by name; each is made when it is asked for.

    Attributes:
        zeroshot: the zero-shot model, on the CPU. Never changed: who trains takes a copy.
        student: what training starts from, a copy: ``init``, or the zero-shot model.
        teacher: who teaches, a copy: ``teacher``, or the zero-shot model.
        checkpoint: the model of ``checkpoint``.
        checkpoints: the files of ``checkpoints``.
        load: gives the model of a file left by a run, of this run's architecture and classes.
        accuracy: gives the top-1 (0…1) of a model on the hold-out.
        anchor: what constraints hold on to (``constraint.anchor``): the zero-shot model, or that of ``init``.
        head: whether they hold the head (``constraint.head``).
        mask: kind, threshold, rate, cam, source and layers (``mask``).
        fill: none, single or multi.
        beta: weight of the distillation term.
        alpha: how far to go from the zero-shot weights to others, 0…1.
        temperature: softens logits.
        seed: of the run.
        data: the data module, set up.
    """

    def __init__(self, cfg: DictConfig, data: RobustnessData, device: torch.device | str = "cpu") -> None:
        self.cfg, self.data, self.device = cfg, data, device
        self._makers: dict[str, Callable[[], Any]] = {
            "zeroshot": lambda: self.zeroshot,
            "student": self.student,
            "teacher": lambda: self._model_of("teacher"),
            "checkpoint": lambda: self.load(cfg.checkpoint),
            "checkpoints": lambda: model_files(cfg.checkpoints),
            "load": lambda: self.load,
            "accuracy": lambda: self.accuracy,
            "anchor": lambda: self._model_of("init") if cfg.constraint.anchor == "init" else self.zeroshot,
            "head": lambda: bool(cfg.constraint.head),
            "mask": lambda: configs.plain(cfg)["mask"],
            "fill": lambda: cfg.fill.kind,
            **{name: partial(cfg.get, name) for name in ("beta", "alpha", "temperature", "seed")},
            "data": lambda: data,
        }

    @property
    def folder(self) -> Path:
        return Path(self.cfg.run_dir)

    @cached_property
    def zeroshot(self) -> Classifier:
        model = self.cfg.model
        tokenizer = model.get("tokenizer")
        return zeroshot_classifier(
            model.architecture,
            model.pretrained,
            self.data.class_names,
            self.data.templates,
            seed=self.cfg.seed,
            tokenizer=instantiate(tokenizer) if tokenizer else None,
            cache=cache_folder() / "heads",
            device=self.device,
            backbone=make_backbone(model),
            check=self._check,
        )

    def _check(self, model: Classifier) -> None:
        """Refuses a model that cannot do what the run asks of it."""
        cfg = self.cfg
        if Settings(cfg).masks() is None:
            check_can(model, cfg.mask.kind, cfg.mask.cam, cfg.fill.kind)
        if cfg.model.grad_checkpointing:
            model.tower.set_grad_checkpointing(True)

    def load(self, path: str | Path) -> Classifier:
        return load_classifier(expand(path), like=self.zeroshot, classes=self.data.class_names)

    def accuracy(self, model: Classifier) -> float:
        """Raises UserError where there is no hold-out."""
        self.data.setup("validate")
        sets = [s for s in self.data.sets if s.name == "holdout"]
        if not sets:
            raise UserError(
                f"data.holdout=0: method={self.cfg.method.name} chooses by the hold-out. Leave data.holdout to its"
                " default."
            )
        options = configs.plain(self.cfg)["trainer"]
        return evaluate(model, self.data, options, self.folder, sets).scores["holdout"].top1

    def student(self) -> Classifier:
        student = self._model_of("init")
        student.tower.set_grad_checkpointing(self.cfg.model.grad_checkpointing)
        return student

    def _model_of(self, setting: str) -> Classifier:
        path = self.cfg[setting]
        return deepcopy(self.zeroshot) if path is None else self.load(path)

    def __getitem__(self, name: str) -> Any:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # the inherited one would make it

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


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


def make_constraints(cfg: DictConfig, inputs: Inputs) -> list[Constraint]:
    """The configured constraints, in the order in which they are listed."""
    chosen = {name: node for name, node in configs.plain(cfg)["constraint"].items() if isinstance(node, Mapping)}
    return [component(f"constraint.{name}", node, inputs)() for name, node in chosen.items()]


def make_metrics(cfg: DictConfig, inputs: Inputs) -> Callable[[], dict[str, SetMetric]]:
    """What makes the configured metrics, anew at every call."""
    chosen = configs.plain(cfg)["metric"]
    makers = {name: component(f"metric.{name}", node, inputs) for name, node in chosen.items()}
    return lambda: {name: make() for name, make in makers.items()}


def make_recipe(cfg: DictConfig) -> Recipe:
    """The configured optimiser settings and schedule."""
    plain = configs.plain(cfg)
    schedule = imported("schedule._target_", plain["schedule"]["_target_"])
    settings = own_settings(plain["schedule"])
    refuse_unknown(schedule, settings, "schedule")
    return Recipe(plain["optimizer"], partial(schedule, **settings))
