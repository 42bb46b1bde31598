"""An evaluation: one model, any of the sets, any metrics, on the run's devices."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustft.common.cache import cache_folder, digest, fingerprint, remembered
from robustft.common.memory import EVALUATION, enough_memory
from robustft.data.datamodule import RobustnessData
from robustft.data.sets import EvaluationSet
from robustft.evaluation.evaluator import Evaluator, MakeMetrics, as_scores
from robustft.evaluation.metrics import best_temperature, needs_temperature
from robustft.evaluation.results import Score, Scores
from robustft.evaluation.scoring import allowed_only, score
from robustft.models.classifier import Classifier
from robustft.training.trainer import agreement, make_trainer, resolve_precision

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
    logits, correct = allowed_only(holdout, evaluator.logits["holdout"].cpu())
    seen = logits.isfinite().all(1)  # of an evaluation that is cut short
    logits, correct = logits[seen], correct[seen]
    temperature = best_temperature(logits, correct)
    known = evaluator.scores["holdout"]
    calibrated = {name: metric for name, metric in metrics().items() if metric.calibrated}
    more = {**known.more, **score(logits, correct, calibrated, temperature).more}
    evaluator.scores["holdout"] = replace(known, more=more)
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
    """Scores of the zero-shot model and its temperature.

    Its logits on each set are computed once and kept, 4 bytes each: all scores are made of them, so that neither other
    metrics nor the hold-out of another seed, which gives another temperature, need an evaluation.
    """
    data.setup("validate")
    make_metrics: MakeMetrics = metrics or dict
    if trainer["limit_val_batches"] is not None or trainer["fast_dev_run"]:  # cut short: nothing to keep
        found = evaluate(zeroshot, data, trainer, folder, metrics=metrics)
        return as_scores(found.scores), found.temperature
    known = _known_logits(zeroshot, data, trainer, folder)
    calibrates = needs_temperature(make_metrics().values())
    temperature, scores = None, {}
    for evaluation_set in data.sets:  # the hold-out comes first
        logits, correct = known(evaluation_set)
        if calibrates and evaluation_set.name == "holdout":
            temperature = best_temperature(logits, correct)
        scores[evaluation_set.name] = score(logits, correct, make_metrics(), temperature, evaluation_set.groups)
    return as_scores(scores), temperature


def _known_logits(
    model: Classifier, data: RobustnessData, trainer: Mapping[str, Any], folder: Path
) -> Callable[[EvaluationSet], tuple[Float[Tensor, "images allowed"], Bool[Tensor, "images allowed"]]]:
    """What gives a model's logits on a set, and which classes are right; evaluated once and remembered."""
    lightning = make_trainer(trainer, folder)
    precision = resolve_precision(trainer["precision"], trainer["accelerator"])
    settings = (fingerprint(model), precision, lightning.strategy.root_device.type)  # what logits depend on

    def known(evaluation_set: EvaluationSet) -> tuple[Tensor, Tensor]:
        def make() -> dict[str, Tensor]:
            log.info("evaluating the zero-shot model on %s", evaluation_set.name)
            found = evaluate(model, data, trainer, folder, [evaluation_set], keep_logits=True)
            return {"logits": allowed_only(evaluation_set, found.logits[evaluation_set.name])[0].contiguous()}

        path = cache_folder() / "scores" / f"{digest(*settings, evaluation_set.fingerprint)}.safetensors"
        logits = remembered(path, make, agreement(lightning))["logits"]
        return logits, evaluation_set.correct[evaluation_set.dataset.labels][:, evaluation_set.allowed]

    return known
