"""One run from its config to its results: data, models, method, evaluation, what is left in the folder."""

import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from robustft.cli import resuming
from robustft.cli.run_folder import start_over
from robustft.common import configs
from robustft.common.cache import cache_folder, fingerprint, one_at_a_time
from robustft.common.errors import UserError
from robustft.common.files import disk_error
from robustft.common.memory import EVALUATION, enough_memory, is_out_of_memory
from robustft.common.paths import expand, readable
from robustft.common.processes import is_first_process
from robustft.counterfactual.distillation import Distillation, make_distillation
from robustft.counterfactual.teacher_maps import teacher_maps
from robustft.data.datamodule import RobustnessData
from robustft.data.sets import EvaluationSet
from robustft.evaluation.disagreement import Disagreement
from robustft.evaluation.evaluator import Evaluator, as_scores, summary
from robustft.evaluation.gallery import write_gallery
from robustft.evaluation.predictions import FILE as PREDICTIONS
from robustft.evaluation.predictions import write_predictions
from robustft.evaluation.results import Scores, print_table, results_record, write_results
from robustft.evaluation.score_cache import ScoreCache
from robustft.models.classifier import Classifier
from robustft.models.files import BEST, MODEL
from robustft.models.weights import load_classifier, save_classifier
from robustft.models.zeroshot import preprocess_of, zeroshot_classifier
from robustft.training import tracking
from robustft.training.checkpoints import check_best, read_position
from robustft.training.loop import AUTO, Trained, check_limits, make_trainer, resolve_precision, train
from robustft.training.tracking import log_results, make_loggers

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict[str, Any] | None:
    """Do what a checked config asks for (robustft/cli/main.py composes it); the content of results.json.

    Raises:
        UserError: the user can put it right. Nothing is left that looks finished.
    """
    this = Run(cfg)
    quieten()
    seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.check == "data":
        from robustft.data.check import check

        check(this.data)
        return None
    if cfg.prepare:
        this.data.prepare(training=cfg.method.takes.trains)
        return None
    if cfg.resume:
        check_best(read_position(this.folder))  # refused before time is spent, if at all
    tracking.check(cfg)
    this.data.trainer = make_trainer(configs.plain(cfg)["trainer"], this.folder)  # it knows how many devices there are
    if cfg.trainer.accumulate_grad_batches == AUTO and this.together:
        raise UserError(
            f"trainer.accumulate_grad_batches=auto tries one device, and this run has {this.data.trainer.world_size}:"
            " give a number, or trainer.devices=1."
        )
    this.data.verify(training=cfg.method.takes.trains)
    if cfg.method.takes.trains:
        this.data.check_batch_size(least=1 if cfg.fill.kind == "none" else 2)
    this.data.setup()
    check_limits(this.data, this.data.trainer, training=cfg.method.takes.trains)
    for path in (cfg.checkpoint, cfg.init, cfg.teacher):
        if path is not None:
            this.load(path)  # refused before time is spent, if at all
    _ = this.loggers  # so are loggers that cannot log
    method = import_module(f"robustft.methods.{cfg.method.name}")
    baseline = this.zeroshot_scores()
    if is_first_process():
        start_over(this.folder)  # with overwrite=true: from here on there is no way back to what lies there
    if cfg.method.takes.trains and cfg.trainer.accumulate_grad_batches == AUTO:
        this.choose_accumulation(head_alone=getattr(method, "HEAD_ALONE", False))
    made: Trained = method.make(this)
    record = this.finish(made, baseline)
    return record


@dataclass
class Run:
    """What methods work with: the config, the data, the models, training and evaluation."""

    cfg: DictConfig
    started: float = field(default_factory=time.perf_counter)

    @property
    def folder(self) -> Path:
        return Path(self.cfg.run_dir)

    @cached_property
    def data(self) -> RobustnessData:
        model = self.cfg.model
        preprocess = preprocess_of(model.architecture, model.pretrained)
        options = {key: value for key, value in self.cfg.data.items() if key != "takes"}
        try:
            make = instantiate(options, _partial_=True, _convert_="all")
        except InstantiationException as error:
            hint = "A module of your own has to lie beside the folder of --config-dir, or on PYTHONPATH"
            why = " ".join(str(error.__cause__ or error).split())
            raise UserError(f"data._target_={self.cfg.data._target_}: cannot be imported ({why}). {hint}") from error
        return make(preprocess=preprocess, seed=self.cfg.seed)

    @cached_property
    def zeroshot(self) -> Classifier:
        """The zero-shot model, on the CPU. Never changed: who trains takes a copy."""
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
        )

    @cached_property
    def device(self) -> torch.device:
        """This process's device, of training and evaluation; what is no part of these is computed there too."""
        return make_trainer(configs.plain(self.cfg)["trainer"], self.folder).strategy.root_device

    @cached_property
    def loggers(self) -> list[Logger]:
        resume_at = read_position(self.folder).step if self.cfg.resume else None
        return make_loggers(self.cfg, self.folder, resume_at)

    def load(self, path: str) -> Classifier:
        """A model left by a run, of this run's architecture and classes."""
        return load_classifier(expand(path), like=self.zeroshot, classes=self.data.class_names)

    def student(self) -> Classifier:
        """What training starts from: ``init``, or the zero-shot model."""
        student = deepcopy(self.zeroshot) if self.cfg.init is None else self.load(self.cfg.init)
        student.visual.set_grad_checkpointing(self.cfg.model.grad_checkpointing)
        return student

    def teacher(self) -> Classifier:
        """Who teaches: ``teacher``, or the zero-shot model."""
        return deepcopy(self.zeroshot) if self.cfg.teacher is None else self.load(self.cfg.teacher)

    def distillation(self, temperature: float | None = None) -> Distillation | None:
        """The configured second term of the loss; None where β is 0."""
        cfg, distillation = self.cfg, self._distillation(temperature)
        if distillation is None or cfg.mask.source != "teacher":
            return distillation
        cams = teacher_maps(distillation.teacher, self.data, cfg.mask, configs.plain(cfg)["trainer"], self.folder)
        return distillation if cams is None else distillation.with_maps(cams)

    def _distillation(self, temperature: float | None) -> Distillation | None:
        """Without maps that are known already."""
        cfg = self.cfg
        if not cfg.beta:
            return None
        return make_distillation(
            self.teacher(), beta=cfg.beta, mask=cfg.mask, fill=cfg.fill.kind, temperature=temperature
        )

    def choose_accumulation(self, head_alone: bool) -> None:
        """Settle ``trainer.accumulate_grad_batches=auto``, here and in what the folder says of the run.

        Args:
            head_alone: the head is trained on features, which takes next to no memory.
        """
        from robustft.training.accumulation import micro_batches_that_fit

        cfg, count = self.cfg, 1
        if not head_alone:
            count = micro_batches_that_fit(
                self.student(),
                self._distillation(cfg.temperature),
                self.data,
                configs.plain(cfg)["trainer"],
                self.folder,
                least=2 if cfg.fill.kind != "none" or cfg.disagreement else 1,
            )
        cfg.trainer.accumulate_grad_batches = count
        resuming.record(self.folder, cfg, f"{configs.ACCUMULATE}={count}")
        self.data.trainer = make_trainer(configs.plain(cfg)["trainer"], self.folder)

    def train(self, student: Classifier, distillation: Distillation | None = None, **changes: Any) -> Trained:
        """Train ``student`` on the run's data with the run's settings; ``changes`` replace arguments of ``train``."""
        cfg = configs.plain(self.cfg)
        arguments: dict[str, Any] = {
            "data": self.data,
            "folder": self.folder,
            "trainer": cfg["trainer"],
            "optimizer": cfg["optimizer"],
            "distillation": distillation,
            "loggers": self.loggers,
            "seed": self.cfg.seed,
            "started": self.started,
            "resume": self.cfg.resume is not None,
            "save_minutes": self.cfg.save_minutes,
            "watch": self.watch if self.cfg.disagreement else None,
        }
        return train(student, **(arguments | changes))

    def watch(self, steps: int, done: Callable[[], None]) -> Disagreement:
        """Measures student against teacher while they train; see ``train``."""
        options = {"times": self.cfg.disagreement, "steps": steps, "seed": self.cfg.seed}
        return Disagreement(self.teacher(), self.data, self.folder, **options, done=done)

    def evaluate(
        self, model: Classifier, sets: Sequence[EvaluationSet] | None = None, keep_predictions: bool = False
    ) -> Evaluator:
        """``model`` on ``sets`` (default: all); see ``scores`` and ``predictions`` of what is returned."""
        options = configs.plain(self.cfg)["trainer"]
        self.data.setup("validate")
        sets = self.data.sets if sets is None else list(sets)
        evaluator = Evaluator(model, sets, keep_predictions)
        trainer = make_trainer(options, self.folder)
        self.data.trainer = trainer
        loaders = [self.data.eval_loader(evaluation_set) for evaluation_set in sets]
        with enough_memory("evaluating", EVALUATION):
            trainer.validate(evaluator, dataloaders=loaders, verbose=False)
        model.cpu()
        return evaluator

    def zeroshot_scores(self) -> Scores | None:
        """Scores of the zero-shot model; each set is evaluated once and remembered by model and images."""
        if self.cfg.method.name == "zeroshot":
            return None
        self.data.setup("validate")
        cache = ScoreCache(cache_folder() / "scores", fingerprint(self.zeroshot), self._evaluation_settings())
        whole = self.cfg.trainer.limit_val_batches is None and not self.cfg.trainer.fast_dev_run
        with nullcontext() if self.together or not whole else one_at_a_time(cache.folder / fingerprint(self.zeroshot)):
            known = {s.name: cache.get(s) if whole else None for s in self.data.sets}
            missing = [s for s in self.data.sets if known[s.name] is None]
            if missing:
                log.info("evaluating the zero-shot model")
                for name, score in self.evaluate(self.zeroshot, missing).scores.items():
                    known[name] = score
                    if whole and is_first_process():
                        cache.put(next(s for s in missing if s.name == name), score)
        return as_scores({name: score for name, score in known.items() if score is not None})

    @property
    def together(self) -> bool:
        """Several processes share the work of this run."""
        return self.data.trainer is not None and self.data.trainer.world_size > 1

    def _evaluation_settings(self) -> dict[str, Any]:
        """What else a score depends on."""
        trainer = self.cfg.trainer
        return {"precision": resolve_precision(trainer.precision, trainer.accelerator), "device": self.device.type}

    def finish(self, made: Trained, zeroshot: Scores | None) -> dict[str, Any]:
        """Evaluate the model and leave everything in the run's folder, results.json last."""
        cfg = self.cfg
        log.info("evaluating")
        evaluator = self.evaluate(made.model, keep_predictions=True)
        scores = as_scores(evaluator.scores)
        keep = bool(cfg.trainer.enable_checkpointing)
        if is_first_process():
            if keep:
                save_classifier(self.folder / MODEL, made.model, self.data.class_names)
            names = self.data.class_names
            write_predictions(self.folder / PREDICTIONS, evaluator.sets, evaluator.predictions, names)
        gallery: list[Path] = []
        if is_first_process():
            with keeps_going("the gallery"):
                gallery = self.gallery(made.model, evaluator)
        plain = configs.plain(cfg)
        masked = bool(cfg.method.takes.masks)
        record = results_record(
            scores,
            name=cfg.run_name,
            method=cfg.method.name,
            model=cfg.model.name,
            seed=cfg.seed,
            partial=self.data.partial or cfg.trainer.limit_val_batches is not None or bool(cfg.trainer.fast_dev_run),
            wall_s=made.earlier_s + time.perf_counter() - self.started,
            config=plain,
            versions=versions(),
            zeroshot=zeroshot if zeroshot is not None else scores if cfg.method.name == "zeroshot" else None,
            mask=plain["mask"] if masked else None,
            fill=cfg.fill.kind if masked else None,
            beta=cfg.beta,
            alpha=cfg.alpha,
            temperature=cfg.temperature,
            checkpoint=MODEL if keep else None,
            train_images_per_s=made.images_per_s,
        )
        if is_first_process():
            with keeps_going("the loggers"):
                log_results(self.loggers, summary(evaluator.scores), record, gallery)
            write_results(self.folder / "results.json", record)
            (self.folder / BEST).unlink(missing_ok=True)
            print_table(record)
            left = ["results.json", PREDICTIONS, *([MODEL] if keep else []), *(["gallery/"] if gallery else [])]
            log.info("in %s: %s", readable(self.folder), ", ".join(left))
        return record

    def gallery(self, student: Classifier, evaluator: Evaluator) -> list[Path]:
        """Pictures of maps, masks and fills on the ID set and the shifts; see its module."""
        cfg = configs.plain(self.cfg)
        distils = bool(self.cfg.method.takes.masks) and bool(cfg["beta"])
        if cfg["method"]["name"] == "zeroshot":
            models = {"zero-shot model": student}
        elif not distils:
            models = {"zero-shot model": self.zeroshot, "final model": student}
        elif self.cfg.teacher is None:
            models = {"zero-shot teacher": self.zeroshot, "fine-tuned student": student}
        else:
            models = {"zero-shot": self.zeroshot, "teacher": self.teacher(), "fine-tuned student": student}
        titles = list(models)
        return write_gallery(
            self.folder / "gallery",
            [s for s in evaluator.sets if s.name in evaluator.scores and s.name != "holdout"],
            models,
            self.data.class_names,
            mask=cfg["mask"] if distils else {**dict.fromkeys(cfg["mask"]), "kind": "none"},
            fill=cfg["fill"]["kind"],
            source=titles[-2] if distils and cfg["mask"]["source"] == "teacher" else titles[-1],
            device=self.device,
        )


@contextmanager
def keeps_going(what: str) -> Iterator[None]:
    """After a training its results are written, whatever becomes of what only accompanies them."""
    try:
        yield
    except Exception as error:
        reason = error if disk_error(error) is not None else "out of memory" if is_out_of_memory(error) else None
        why = "" if reason is None else f" ({reason})"
        log.warning("%s failed%s; the results are complete without", what, why, exc_info=reason is None)


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    packages = ("robustft", "torch", "lightning", "open_clip_torch", "torchvision")
    threads = str(torch.get_num_threads())  # on the CPU they change the last digits
    return {"python": platform.python_version(), **{name: version(name) for name in packages}, "threads": threads}


def quieten() -> None:
    """Lightning's hints on settings that are chosen on purpose here, and its start-up lines."""
    import warnings

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*resuming from a checkpoint that ended before the epoch.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The `srun` command is available.*",
        ".*is smaller than the logging interval.*",
        ".*Total length of .* across ranks is zero.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*You have overridden `on_after_batch_transfer` in `LightningModule`.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*It is recommended to use `self.log.*sync_dist=True.*",
    ):
        warnings.filterwarnings("ignore", text)
