"""An evaluation: one model, any of the sets, any metrics, on the run's devices."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from robustft.common.cache import cache_folder, fingerprint, one_at_a_time
from robustft.common.memory import EVALUATION, enough_memory
from robustft.common.processes import is_first_process
from robustft.data.datamodule import RobustnessData
from robustft.data.sets import EvaluationSet
from robustft.evaluation.evaluator import Evaluator, MakeMetrics, as_scores
from robustft.evaluation.metrics import best_temperature, needs_temperature
from robustft.evaluation.results import Score, Scores
from robustft.evaluation.score_cache import ScoreCache
from robustft.models.classifier import Classifier
from robustft.training.trainer import make_trainer, resolve_precision

log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """What an evaluation found, by set.

    Attributes:
        predictions: positions of the predicted classes.
        details: numbers of each image; see ``PER_IMAGE``.
        temperature: that suits the hold-out best, where a metric asks for it and there is one.
    """

    sets: list[EvaluationSet]
    scores: dict[str, Score] = field(default_factory=dict)
    predictions: dict[str, Int64[Tensor, " images"]] = field(default_factory=dict)
    details: dict[str, Float[Tensor, "images 4"]] = field(default_factory=dict)
    logits: dict[str, Float[Tensor, "images classes"]] = field(default_factory=dict)
    temperature: float | None = None

    def take(self, evaluator: Evaluator) -> None:
        """Add what an evaluator has found, brought to the CPU."""
        self.scores |= evaluator.scores
        for name in ("predictions", "details", "logits"):
            getattr(self, name).update({key: value.cpu() for key, value in getattr(evaluator, name).items()})


def evaluate(
    model: Classifier,
    data: RobustnessData,
    trainer: Mapping[str, Any],
    folder: Path,
    sets: Sequence[EvaluationSet] | None = None,
    *,
    metrics: MakeMetrics | None = None,
    keep_predictions: bool = False,
    keep_logits: bool = False,
) -> Evaluation:
    """Evaluate ``model`` on ``sets`` (default: all of ``data``), and leave it on the CPU.

    Where a metric is of calibrated probabilities, the hold-out goes first: it gives the temperature.

    Args:
        trainer: arguments of Lightning's Trainer.
        folder: of the run.
        metrics: makes what is measured beside top-1, for each set.
    """
    data.setup("validate")
    sets = data.sets if sets is None else list(sets)
    found = Evaluation(sets)
    options: dict[str, Any] = {"keep_predictions": keep_predictions, "metrics": metrics}
    holdout = next((s for s in data.sets if s.name == "holdout"), None)
    rest = sets
    if metrics is not None and holdout is not None and needs_temperature(metrics().values()):
        first = Evaluator(model, [holdout], keep_logits=True, **options)
        _validate(first, data, trainer, folder)
        found.temperature = _calibrate(first, holdout, metrics)
        first.logits = first.logits if keep_logits else {}
        if holdout in sets:
            found.take(first)
        rest = [s for s in sets if s is not holdout]
    if rest:
        evaluator = Evaluator(model, rest, keep_logits=keep_logits, temperature=found.temperature, **options)
        _validate(evaluator, data, trainer, folder)
        found.take(evaluator)
    return found


def _calibrate(evaluator: Evaluator, holdout: EvaluationSet, metrics: MakeMetrics) -> float:
    """The temperature of the hold-out that was evaluated; its calibrated metrics are added to its scores."""
    logits = evaluator.logits["holdout"].cpu()
    seen = logits.isfinite().all(1)  # of an evaluation that is cut short
    correct = holdout.correct[holdout.dataset.labels[seen]][:, holdout.allowed]
    logits = logits[seen][:, holdout.allowed]
    temperature = best_temperature(logits, correct)
    score = evaluator.scores["holdout"]
    more = dict(score.more)
    for name, metric in metrics().items():
        if metric.calibrated:
            metric.start(correct.shape[1])
            metric.update((logits / temperature).softmax(1), correct)
            metric.sync_on_compute = False  # every process has all of it
            more[name] = float(metric.compute())
    evaluator.scores["holdout"] = replace(score, more=more)
    return temperature


def _validate(evaluator: Evaluator, data: RobustnessData, trainer: Mapping[str, Any], folder: Path) -> None:
    lightning = make_trainer(trainer, folder)
    loaders = [data.eval_loader(evaluation_set) for evaluation_set in evaluator.sets]
    with enough_memory("evaluating", EVALUATION):
        lightning.validate(evaluator, dataloaders=loaders, verbose=False)
    evaluator.model.cpu()


def zeroshot_scores(
    zeroshot: Classifier,
    data: RobustnessData,
    trainer: Mapping[str, Any],
    folder: Path,
    metrics: MakeMetrics | None = None,
) -> tuple[Scores, float | None]:
    """Scores of the zero-shot model and its temperature; each set is evaluated once and remembered.

    What is remembered goes by model, images and metrics; of calibrated ones by the hold-out too.
    """
    data.setup("validate")
    lightning = make_trainer(trainer, folder)
    precision = resolve_precision(trainer["precision"], trainer["accelerator"])
    settings = {"precision": precision, "device": lightning.strategy.root_device.type}  # what else a score depends on
    made = {} if metrics is None else dict(metrics())
    if made:
        settings["metrics"] = {name: repr(vars(metric).get("bins", "")) for name, metric in sorted(made.items())}
    holdout = next((s for s in data.sets if s.name == "holdout"), None)
    if holdout is not None and needs_temperature(made.values()):
        settings["calibrated by"] = holdout.fingerprint
    model = fingerprint(zeroshot)
    cache = ScoreCache(cache_folder() / "scores", model, settings)
    whole = trainer["limit_val_batches"] is None and not trainer["fast_dev_run"]
    alone = lightning.world_size == 1 and whole
    temperature = cache.get_temperature() if whole else None
    with one_at_a_time(cache.folder / model) if alone else nullcontext():
        known = {s.name: cache.get(s) if whole else None for s in data.sets}
        missing = [s for s in data.sets if known[s.name] is None]
        if missing:
            log.info("evaluating the zero-shot model")
            found = evaluate(zeroshot, data, trainer, folder, missing, metrics=metrics)
            temperature = found.temperature or temperature
            for evaluation_set in missing:
                if (score := found.scores.get(evaluation_set.name)) is not None:
                    known[evaluation_set.name] = score
                    if whole and is_first_process():
                        cache.put(evaluation_set, score)
            if whole and temperature is not None and is_first_process():
                cache.put_temperature(temperature)
    return as_scores({name: score for name, score in known.items() if score is not None}), temperature
