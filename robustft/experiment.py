"""One run from its config to its results: data, models, method, evaluation, what is left in the folder."""

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict

from robustft.cli import compose, recipes, resuming
from robustft.cli.checks import least_images
from robustft.cli.display import dials, display
from robustft.cli.run_folder import keep, start_over
from robustft.cli.settings import Settings
from robustft.common import configs
from robustft.common.errors import UserError
from robustft.common.files import disk_error, save_tensors
from robustft.common.memory import is_out_of_memory
from robustft.common.paths import expand, readable
from robustft.common.processes import is_first_process
from robustft.components import component, make_data, make_moving, make_parts, make_recipe
from robustft.data.check import known_leaks
from robustft.data.datamodule import Devices, RobustnessData
from robustft.evaluation.disagreement import Disagreement
from robustft.evaluation.evaluate import Evaluation, evaluate, zeroshot_scores
from robustft.evaluation.evaluator import MakeMetrics, as_scores, summary
from robustft.evaluation.gallery import write_gallery
from robustft.evaluation.metrics import described
from robustft.evaluation.predictions import FILE as PREDICTIONS
from robustft.evaluation.predictions import LOGITS, write_predictions
from robustft.evaluation.results import Scores, read_results, results_record, write_results
from robustft.evaluation.retention import Retention, retained
from robustft.evaluation.summary import print_table
from robustft.evaluation.verdict import verdict
from robustft.inputs import Inputs, make_constraints, make_metrics, make_retention
from robustft.models.classifier import Classifier
from robustft.models.files import BEST, MODEL, model_files, why_no_model
from robustft.models.weights import save_classifier
from robustft.training import tracking
from robustft.training.accumulation import micro_batches_that_fit
from robustft.training.checkpoints import check_best, read_position
from robustft.training.loop import Trained, check_limits, train
from robustft.training.method import Method
from robustft.training.recipe import Training
from robustft.training.tracking import log_results, make_loggers
from robustft.training.trainer import AUTO, make_trainer

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict[str, Any] | None:
    """Do what a checked config asks for (robustft/cli/main.py composes it); the content of results.json.

    Raises:
        UserError: the user can put it right. Nothing is left that looks finished.
    """
    started, folder, takes = time.perf_counter(), Path(cfg.run_dir), cfg.method.takes
    quieten()
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = make_data(cfg)
    if cfg.check == "data":
        from robustft.data.check import check

        check(data, folder)
        return None
    if cfg.prepare:
        data.prepare(training=takes.trains)
        return None

    # What can be refused is refused before time is spent.
    position = read_position(folder) if cfg.resume else None
    if position is not None:
        check_best(position)
        if position.threads not in (None, torch.get_num_threads()):
            log.warning(
                "the run was begun with %s threads and goes on with %s: last digits will differ",
                position.threads,
                torch.get_num_threads(),
            )
    tracking.check(cfg)
    lightning = make_trainer(options(cfg), folder)
    data.devices = Devices.of(lightning)
    if cfg.trainer.accumulate_grad_batches == AUTO and lightning.world_size > 1:
        raise UserError(
            f"trainer.accumulate_grad_batches=auto tries one device, and this run has {lightning.world_size}: give a"
            " number, or trainer.devices=1."
        )
    data.verify(training=takes.trains)
    if takes.trains:
        settle(cfg, data)
        data.check_batch_size(least=least_images(Settings(cfg)))
    data.setup()
    check_limits(data, lightning, training=takes.trains)
    inputs = Inputs(cfg, data, lightning.strategy.root_device)
    make = component("method", configs.plain(cfg)["method"], inputs)
    for path in (cfg.checkpoint, cfg.init, cfg.teacher):
        if path is not None:
            inputs.load(path)
    loggers = make_loggers(cfg, folder, None if position is None else position.step)

    if takes.trains:
        check_start(cfg, inputs)
    if takes.get("fits") == "holdout":
        check_holdout(cfg)
    metrics = make_metrics(cfg, inputs)
    inputs.zeroshot  # noqa: B018 -- refused now, if it cannot do what is asked
    retention = make_retention(cfg, inputs)
    compares = has_text(cfg) and not is_reference(cfg)
    reference = inputs.zeroshot.without_text()
    baseline = zeroshot_scores(reference, data, options(cfg), folder, metrics) if compares else None
    if retention is not None:
        retention.ask_zeroshot(reference)
    if is_first_process():
        start_over(folder)  # with overwrite=true: from here on there is no way back to what lies there
    system = make()
    keep()
    trains = isinstance(system, Method)
    trained = train_method(system, cfg, inputs, loggers, started) if trains else Trained(system)
    return finish(trained, baseline, retention, metrics, cfg, inputs, loggers, started)


def check_start(cfg: DictConfig, inputs: Inputs) -> None:
    """Try what is trained and what is held, on a model that is thrown away.

    Raises:
        UserError: there are no such parts, or a constraint holds nothing or loses what training starts from.
    """
    constraints = make_constraints(cfg, inputs)
    if cfg.train.name == "all" and not constraints:
        return
    student = inputs.student()
    make_parts(cfg).start(student, cfg.seed)
    for constraint in constraints:
        constraint.attach(student, next(student.parameters()).device)
        constraint.check_start()


def check_holdout(cfg: DictConfig) -> None:
    """Refuse to fit to images that the checkpoint was trained on.

    Raises:
        UserError: the checkpoint's run held out other images of the same data, or was given another number of them.
    """
    path = expand(cfg.checkpoint)
    saved = resuming.saved_config(path if path.is_dir() else path.parent)
    if saved is None or not isinstance(saved.get("data"), dict):
        return
    theirs = saved["data"]
    if not theirs.get("holdout", True):
        return
    ours = configs.plain(cfg)["data"]
    if ours["holdout"] == 0:  # the method says what it misses
        return
    images = ("_target_", "root", "train", "path", "data_seed", "source", "target")
    if any(theirs.get(name) != ours.get(name) for name in images):
        return
    draw = holdout_draw(theirs, saved.get("seed"))
    wrong: dict[str, Any] = {} if draw == holdout_draw(ours, cfg.seed) else {"holdout_seed": draw}
    for name in ("train_images", "shots", "holdout"):  # from which, how many of each class, and how many
        if theirs.get(name) != ours.get(name):
            wrong[name] = "null" if theirs.get(name) is None else theirs[name]
    if wrong:
        raise UserError(
            f"method={cfg.method.name} is fitted to the hold-out, and {cfg.checkpoint} was trained on images of this"
            f" one: its own is another. Add {' '.join(f'data.{name}={value}' for name, value in wrong.items())}"
        )


def holdout_draw(data: Mapping[str, Any], seed: int | None) -> int | None:
    """The seed that says which images are held out: the data's own, or the run's."""
    own = data.get("holdout_seed")
    return seed if own is None else own


def settle(cfg: DictConfig, data: RobustnessData) -> None:
    """Let the data choose what still follows the model's recipe: a small set has rules of its own.

    They follow from the images and the recipe, so that a run that goes on finds the same.
    """
    written = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(written, dict)
    by_recipe = {
        "batch_size": (written["data"]["batch_size"], "${model.recipe.batch_size}", cfg.model.recipe.batch_size),
        "max_epochs": (written["trainer"]["max_epochs"], "${model.recipe.epochs}", cfg.model.recipe.epochs),
    }
    recipe = {name: value for name, (raw, reference, value) in by_recipe.items() if raw == reference}
    if cfg.trainer.max_steps != -1:
        recipe.pop("max_epochs", None)
    settled = data.settle(recipe)
    with open_dict(cfg):
        if "batch_size" in settled:
            cfg.data.batch_size = data.batch_size = settled["batch_size"]
        if "max_epochs" in settled:
            cfg.trainer.max_epochs = settled["max_epochs"]


def options(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of Lightning's Trainer."""
    return configs.plain(cfg)["trainer"]


def is_reference(cfg: DictConfig) -> bool:
    """Whether the run is the zero-shot model's own, with which others are compared."""
    return bool(cfg.method.takes.get("reference", False))


def leaves_model(cfg: DictConfig) -> bool:
    """Whether what the method gives is one model with weights, which can be saved."""
    return bool(cfg.method.takes.get("leaves_model", True))


def has_text(cfg: DictConfig) -> bool:
    """Whether the model has a text tower, and with it a zero-shot head."""
    return bool(OmegaConf.select(cfg, "model.takes.text", default=True))


def train_method(
    method: Method, cfg: DictConfig, inputs: Inputs, loggers: list[Logger], started: float | None = None
) -> Trained:
    """Train as the config says; settles ``trainer.accumulate_grad_batches=auto`` first."""
    if cfg.trainer.accumulate_grad_batches == AUTO:
        training = make_training(cfg, inputs, loggers, started)
        count = micro_batches_that_fit(method, training, least_images(Settings(cfg)))
        cfg.trainer.accumulate_grad_batches = count
        resuming.record(inputs.folder, cfg, f"{configs.ACCUMULATE}={count}")
        inputs.data.devices = replace(inputs.data.devices, accumulate=count)
    return train(method, make_training(cfg, inputs, loggers, started))


def make_training(cfg: DictConfig, inputs: Inputs, loggers: list[Logger], started: float | None = None) -> Training:
    """How the config says to train, whatever the method."""

    def watch(steps: int, done: Callable[[], None]) -> Disagreement:
        chosen = {"times": cfg.disagreement, "steps": steps, "seed": cfg.seed}
        return Disagreement(inputs["teacher"], inputs.data, inputs.folder, **chosen, done=done)

    return Training(
        data=inputs.data,
        folder=inputs.folder,
        trainer=options(cfg),
        recipe=make_recipe(cfg),
        seed=cfg.seed,
        constraints=make_constraints(cfg, inputs),
        moving=make_moving(cfg),
        parts=make_parts(cfg),
        loggers=loggers,
        resume=cfg.resume is not None,
        started=started,
        save_minutes=cfg.save_minutes,
        watch=watch if cfg.disagreement else None,
    )


def finish(
    trained: Trained,
    zeroshot: tuple[Scores, float | None] | None,
    retention: Retention | None,
    metrics: MakeMetrics,
    cfg: DictConfig,
    inputs: Inputs,
    loggers: list[Logger],
    started: float,
) -> dict[str, Any]:
    """Evaluate the model and leave everything in the run's folder, results.json last."""
    folder, data, plain = inputs.folder, inputs.data, configs.plain(cfg)
    log.info("evaluating")
    found = evaluate(
        trained.model,
        data,
        options(cfg),
        folder,
        metrics=metrics,
        keep_predictions=True,
        keep_logits=bool(cfg.keep_logits),
    )
    scores = as_scores(found.scores)
    reference, zeroshot_temperature = zeroshot or (scores if has_text(cfg) else None, found.temperature)
    knows = None if retention is None else known(retention, trained.model, cfg, inputs)
    is_one = leaves_model(cfg)
    keep = bool(cfg.trainer.enable_checkpointing) and is_one
    pictures: list[Path] = []
    if is_first_process():
        if keep:
            save_classifier(folder / MODEL, trained.model, data.class_names)
        write_predictions(folder / PREDICTIONS, found, data.class_names)
        if cfg.keep_logits:
            save_tensors(folder / LOGITS, found.logits, {})
        if is_one:
            with keeps_going("the gallery"):
                pictures = gallery(trained, found, cfg, inputs)
    masked = bool(cfg.method.takes.masks)
    record = results_record(
        scores,
        name=cfg.run_name,
        method=cfg.method.name,
        model=cfg.model.name,
        seed=cfg.seed,
        partial=data.partial or cfg.trainer.limit_val_batches is not None or bool(cfg.trainer.fast_dev_run),
        wall_s=trained.earlier_s + time.perf_counter() - started,
        config=plain,
        versions=versions(),
        zeroshot=reference,
        mask=plain["mask"] if masked else None,
        fill=cfg.fill.kind if masked else None,
        beta=cfg.beta,
        alpha=cfg.alpha,
        temperature=cfg.temperature,
        checkpoint=MODEL if keep else None,
        train_images_per_s=trained.images_per_s,
        settings=dials(cfg),
        display=display(cfg),
        protocol=protocol(cfg, inputs),
        metrics=described(metrics()),
        retention=knows,
        calibration=None
        if found.temperature is None
        else {"temperature": found.temperature, "zeroshot_temperature": zeroshot_temperature},
    )
    if is_first_process():
        with keeps_going("the loggers"):
            log_results(loggers, summary(found.scores) | retained(knows), record, pictures)
        write_results(folder / "results.json", record)
        (folder / BEST).unlink(missing_ok=True)
        print_table(record)
        left = ["results.json", PREDICTIONS, *([LOGITS] if cfg.keep_logits else []), *([MODEL] if keep else [])]
        left += ["gallery/"] if pictures else []
        log.info("in %s: %s", readable(folder), ", ".join(left))
        if not is_one:
            log.info("no model file: %s", why_no_model(record))
        log.info("%s", verdict(record))
    return record


def known(retention: Retention, model: Classifier, cfg: DictConfig, inputs: Inputs) -> dict[str, Any]:
    """What the model still knows of other tasks, beside what the zero-shot model knows."""
    if is_reference(cfg):
        return retention.of_zeroshot()
    own = None if model.text is None else inputs.embeddings(retention.tasks, model.text)
    return retention.of(model.without_text(), own)


def gallery(trained: Trained, evaluation: Evaluation, cfg: DictConfig, inputs: Inputs) -> list[Path]:
    """Pictures of maps, masks and fills on the ID set and the shifts; see its module."""
    plain, student, moved = configs.plain(cfg), trained.model, trained.teacher
    masked = Settings(cfg).masks() is None
    if is_reference(cfg):
        models = {"zero-shot model": student}
    elif not masked:
        models = {"zero-shot model": inputs.zeroshot, "final model": student}
    elif moved is student:  # an average that is the result too
        models = {"zero-shot": inputs.zeroshot, "average: teacher and result": student}
    elif moved is not None:
        models = {"zero-shot": inputs.zeroshot, "teacher in the end": moved, "fine-tuned student": student}
    elif cfg.teacher is None:
        models = {"zero-shot teacher": inputs.zeroshot, "fine-tuned student": student}
    else:
        models = {"zero-shot": inputs.zeroshot, "teacher": inputs["teacher"], "fine-tuned student": student}
    titles = list(models)
    return write_gallery(
        inputs.folder / "gallery",
        [s for s in evaluation.sets if s.name in evaluation.scores and s.name != "holdout"],
        models,
        inputs.data.class_names,
        mask=plain["mask"] if masked else {**dict.fromkeys(plain["mask"]), "kind": "none"},
        fill=plain["fill"]["kind"],
        source=titles[-2] if masked and plain["mask"]["source"] == "teacher" and moved is not student else titles[-1],
        device=inputs.device,
    )


def protocol(cfg: DictConfig, inputs: Inputs) -> dict[str, Any]:
    """How the model was trained and is evaluated, as far as readers of results compare by it."""
    takes, trains = cfg.method.takes, bool(cfg.method.takes.trains)
    untrained_head = "random" if cfg.model.pretrained is None else "zeroshot"
    return {
        "selection": ("last" if inputs.data.holdout == 0 else "holdout") if trains else None,
        "head": takes.get("head", "text" if inputs.with_text else untrained_head),
        "augment": (cfg.augment.kind or "none") if trains else None,
        "schedule": cfg.schedule.name if trains else None,
        "train": "head" if takes.get("features") else cfg.train.name if trains else None,
        "recipe": recipe(cfg, inputs),
        "models_at_inference": takes.get("models", 1),
        "transductive": bool(takes.get("transductive", False)),
        "test_set_used": False,
        "benchmark": OmegaConf.select(cfg, "data.takes.benchmark"),
        "leaks": known_leaks(inputs.data),
        **inputs.data.protocol(),
    }


def recipe(cfg: DictConfig, inputs: Inputs) -> str | None:
    """By which recipe the model was trained: here, or where the models that it is made of were; None: it was not.

    None too of models of which nothing tells. Of several recipes it is a mixture, "typed".
    """
    if cfg.method.takes.trains:
        return recipes.in_use(cfg, compose.parse(resuming.saved_overrides(inputs.folder)))
    given = [*([] if cfg.checkpoint is None else [cfg.checkpoint]), *model_files(cfg.checkpoints or [])]
    found = {told.get("recipe") for path in given if (told := told_protocol(Path(path).with_name("results.json")))}
    return recipes.TYPED if len(found) > 1 else next(iter(found), None)


def told_protocol(path: Path) -> dict[str, Any]:
    """The protocol in a results file; empty where there is none that can be read."""
    try:
        return read_results(path).get("protocol") or {}
    except UserError:
        return {}


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
        ".*in eval mode at the start of training.*",
        ".*Total length of .* across ranks is zero.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*You have overridden `on_(before|after)_batch_transfer` in `LightningModule`.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*It is recommended to use `self.log.*sync_dist=True.*",
    ):
        warnings.filterwarnings("ignore", text)
