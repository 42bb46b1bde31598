"""What a run has to offer to its method and its constraints: they are given what their parameters are named after."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from robustft.cli.settings import Settings
from robustft.common import configs
from robustft.common.cache import cache_folder
from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.components import component, make_tokenizer, make_zeroshot
from robustft.data.datamodule import RobustnessData
from robustft.data.loading import make_loader
from robustft.data.own.tasks import tasks_of
from robustft.data.sets import Batch, EvaluationSet, RetentionTask
from robustft.evaluation.evaluate import evaluate
from robustft.evaluation.metrics import SetMetric, WorstGroup
from robustft.evaluation.retention import Retention, Rows, embeddings
from robustft.methods.features import features_of
from robustft.models.classifier import Classifier, check_can
from robustft.models.files import model_file, model_files, weights_file
from robustft.models.frozen_text import FrozenText, frozen_text
from robustft.models.others import classifier_of_others
from robustft.models.weights import has_text, is_ours, load_classifier, require_alike
from robustft.models.zeroshot import open_clip_tokenizer
from robustft.training.constraint import Constraint


class Inputs(Mapping[str, Any]):
    """What there is to ask for, by name; each is made when it is asked for.

    Attributes:
        zeroshot: the zero-shot model, on the CPU. Never changed: who trains takes a copy.
        student: what training starts from, a copy: ``init``, or the zero-shot model. It has a text tower where the
            method trains that (``takes: {text: trained}``) or makes its head by it (``text: frozen``).
        teacher: who teaches, a copy: ``teacher``, or the zero-shot model. With its text tower, likewise.
        checkpoint: the model of ``checkpoint``.
        checkpoints: the files of ``checkpoints``.
        load: gives the model of a file, of this run's architecture and classes: one left by a run, or the weights of
            others (see ``Inputs.load``).
        accuracy: gives the top-1 (0…1) of a model on the hold-out.
        encode: gives the features of a set of images by a model, kept in the cache folder.
        anchor: what constraints hold on to (``constraint.anchor``): the zero-shot model, or that of ``init``.
        head: whether they hold the head (``constraint.head``).
        mask: kind, threshold, rate, cam, source and layers (``mask``).
        fill: none, single or multi.
        beta: weight of the distillation term.
        alpha: how far to go from the zero-shot weights to others, 0…1.
        temperature: softens logits.
        seed: of the run.
        data: the data module, set up.
        text: the pre-trained text tower, frozen, for methods that compare by texts; a copy.
        contexts: what a text tower makes of the prompt templates, a row each: the mean over classes, times its scale.
        holdout: gives so many batches of so many hold-out images at random, on the device, to fit a few numbers to.
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
            "encode": lambda: partial(
                features_of, source=data, options=configs.plain(cfg)["trainer"], folder=self.folder
            ),
            "anchor": lambda: self._model_of("init") if cfg.constraint.anchor == "init" else self.zeroshot,
            "head": lambda: bool(cfg.constraint.head),
            "mask": lambda: configs.plain(cfg)["mask"],
            "fill": lambda: cfg.fill.kind,
            **{name: partial(cfg.get, name) for name in ("beta", "alpha", "temperature", "seed")},
            "data": lambda: data,
            "text": lambda: self.text,
            "contexts": lambda: self.text.contexts(data.class_names, data.templates, cache_folder() / "heads", device),
            "holdout": lambda: self.holdout_batches,
        }

    @property
    def folder(self) -> Path:
        return Path(self.cfg.run_dir)

    @cached_property
    def zeroshot(self) -> Classifier:
        return make_zeroshot(
            self.cfg.model, self.data, self.cfg.seed, device=self.device, check=self._check, text=self.with_text
        )

    @property
    def text(self) -> FrozenText:
        model = self.cfg.model
        return frozen_text(model.architecture, model.pretrained, self.cfg.seed, make_tokenizer(model))

    @cached_property
    def with_text(self) -> bool:
        """Whether the run's models have text towers of their own: the method trains them, or works on such models."""
        cfg, takes = self.cfg, self.cfg.method.takes
        if takes.trains:
            return takes.get("text") in ("trained", "frozen")
        given = [] if cfg.checkpoint is None else [model_file(cfg.checkpoint)]
        return any(map(has_text, [*given, *model_files(cfg.checkpoints or [])]))

    def _check(self, model: Classifier) -> None:
        """Refuses a model that cannot do what the run asks of it."""
        cfg = self.cfg
        if Settings(cfg).masks() is None:
            check_can(model, cfg.mask.kind, cfg.mask.cam, cfg.fill.kind)
        if cfg.method.takes.get("states") and cfg.beta != 0 and not model.tower.tokens:
            raise model.refusal("sequence of tokens from block to block")
        if cfg.model.grad_checkpointing:
            model.tower.set_grad_checkpointing(True)

    def embeddings(self, tasks: Sequence[RetentionTask], trained: nn.Module | None = None) -> dict[str, Rows]:
        """Unit embeddings of the classes of tasks, by the pre-trained text tower or one that was trained."""
        model, file = self.cfg.model, weights_file(self.cfg.model.pretrained)
        tokenizer = make_tokenizer(model) or open_clip_tokenizer(model.architecture)
        return embeddings(tasks, self.zeroshot, tokenizer, trained, near=(file, file.parent), device=self.device)

    def load(self, path: str | Path) -> Classifier:
        """The model in a file: one left by a run, or fine-tuned by others.

        It has a text tower where the run's models have one, and only there. A state dict of wise-ft's or of model soups
        has its own head; the head of a whole CLIP, as open_clip and FLYP leave it, is made by the text tower in the
        file.

        Raises:
            UserError: it cannot be read, does not fit this run's model and classes, or lacks the text tower.
        """
        file = model_file(path)
        if is_ours(file):
            model = load_classifier(file, like=self.zeroshot, classes=self.data.class_names)
        else:
            model = self._of_others(file)
        if not self.with_text:
            return model.without_text()
        if model.text is None and self.cfg.method.takes.get("text") == "frozen":
            model.text = self.zeroshot.text
        if model.text is None:
            raise UserError(f"{path} is a model without a text tower of its own, and this run needs one")
        model.prompts = self.zeroshot.prompts
        return model

    def _of_others(self, file: Path) -> Classifier:
        """A model that others have fine-tuned, of this run's kind."""
        if (found := classifier_of_others(file, self.zeroshot.without_text(), self.data.class_names)) is not None:
            return found
        model, seed = self.cfg.model, self.cfg.seed
        found = make_zeroshot(model, self.data, seed, str(file), device=self.device, text=self.with_text)
        require_alike(found.architecture, self.zeroshot.architecture, file)
        return found

    def accuracy(self, model: Classifier) -> float:
        """Raises UserError where there is no hold-out."""
        sets = [self._holdout_set()]
        options = configs.plain(self.cfg)["trainer"]
        return evaluate(model, self.data, options, self.folder, sets).scores["holdout"].top1

    def holdout_batches(self, count: int, size: int) -> Iterator[Batch]:
        """``count`` batches of ``size`` hold-out images, all of them as often as each other, in an order of the seed.

        Raises:
            UserError: there is no hold-out.
        """
        images, needed = self._holdout_set().dataset, count * size
        rounds = (generator("hold-out batches", self.cfg.seed, number) for number in range(-(-needed // len(images))))
        order = torch.cat([torch.randperm(len(images), generator=random) for random in rounds])[:needed]
        workers = self.data.default_workers() if self.data.num_workers is None else self.data.num_workers
        for batch in make_loader(images, order.tolist(), size, num_workers=workers):
            batch = Batch(*(part.to(self.device) for part in batch))
            yield batch._replace(images=self.zeroshot.normalise(batch.images))

    def _holdout_set(self) -> EvaluationSet:
        self.data.setup("validate")
        sets = [s for s in self.data.sets if s.name == "holdout"]
        if not sets:
            raise UserError(
                f"data.holdout=0: method={self.cfg.method.name} chooses by the hold-out. Leave data.holdout to its"
                " default."
            )
        return sets[0]

    def student(self) -> Classifier:
        student = self._model_of("init")
        student.set_grad_checkpointing(self.cfg.model.grad_checkpointing)
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


def make_constraints(cfg: DictConfig, inputs: Inputs) -> list[Constraint]:
    """The configured constraints, in the order in which they are listed."""
    chosen = {name: node for name, node in configs.plain(cfg)["constraint"].items() if isinstance(node, Mapping)}
    return [component(f"constraint.{name}", node, inputs)() for name, node in chosen.items()]


def make_metrics(cfg: DictConfig, inputs: Inputs) -> Callable[[], dict[str, SetMetric]]:
    """Give what makes the configured metrics, anew at every call; where sets tell groups apart, the worst one too.

    Raises:
        UserError: a metric of groups is asked for, and no set has any.
    """
    chosen = configs.plain(cfg)["metric"]
    makers = {name: component(f"metric.{name}", node, inputs) for name, node in chosen.items()}
    if any(one.groups is not None for one in inputs.data.sets):
        makers.setdefault("worst_group", WorstGroup)
    elif grouped := [name for name, make in makers.items() if make().grouped]:
        raise UserError(
            f"metric={grouped[0]}: the data tell no groups apart. A table does, by its column `group`: data=table"
        )
    return lambda: {name: make() for name, make in makers.items()}


def make_retention(cfg: DictConfig, inputs: Inputs) -> Retention | None:
    """The tasks on which the run is asked what it still knows; None where nothing can be asked or there are none.

    Raises:
        UserError: a task is missing or wrong, or one is typed and the model goes with no text tower.
    """
    plain = configs.plain(cfg)
    typed, zeroshot = plain["retain"], inputs.zeroshot
    if cfg.model.pretrained is None or not cfg.method.takes.get("leaves_model", True):
        return None  # nothing that could be forgotten, or no one model that could be asked
    if zeroshot.text is None and zeroshot.architecture.text is None:
        if wanted := [name for name, options in typed.items() if options.get("path") is not False]:
            raise UserError(
                f"retain.{wanted[0]}: nothing says which text tower goes with model.pretrained={cfg.model.pretrained}"
                " (an older file, or random weights). Leave it out"
            )
        return None
    tasks = tasks_of(typed, inputs.data)
    return Retention(tasks, inputs.embeddings(tasks), inputs.data, plain["trainer"], inputs.folder) if tasks else None
