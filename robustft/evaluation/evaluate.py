"""An evaluation: one model, any of the sets, on the run's devices."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from robustft.common.cache import cache_folder, fingerprint, one_at_a_time
from robustft.common.memory import EVALUATION, enough_memory
from robustft.common.processes import is_first_process
from robustft.data.datamodule import RobustnessData
from robustft.data.sets import EvaluationSet
from robustft.evaluation.evaluator import Evaluator, as_scores
from robustft.evaluation.results import Scores
from robustft.evaluation.score_cache import ScoreCache
from robustft.models.classifier import Classifier
from robustft.training.trainer import make_trainer, resolve_precision

log = logging.getLogger(__name__)


def evaluate(
    model: Classifier,
    data: RobustnessData,
    trainer: Mapping[str, Any],
    folder: Path,
    sets: Sequence[EvaluationSet] | None = None,
    keep_predictions: bool = False,
) -> Evaluator:
    """Evaluate ``model`` on ``sets`` (default: all of ``data``), and leave it on the CPU.

    Args:
        trainer: arguments of Lightning's Trainer.
        folder: of the run.

    Returns:
        See its ``scores`` and ``predictions``.
    """
    data.setup("validate")
    sets = data.sets if sets is None else list(sets)
    evaluator = Evaluator(model, sets, keep_predictions)
    lightning = make_trainer(trainer, folder)
    data.trainer = lightning
    loaders = [data.eval_loader(evaluation_set) for evaluation_set in sets]
    with enough_memory("evaluating", EVALUATION):
        lightning.validate(evaluator, dataloaders=loaders, verbose=False)
    model.cpu()
    return evaluator


def zeroshot_scores(zeroshot: Classifier, data: RobustnessData, trainer: Mapping[str, Any], folder: Path) -> Scores:
    """Scores of the zero-shot model; each set is evaluated once and remembered by model and images."""
    data.setup("validate")
    lightning = make_trainer(trainer, folder)
    precision = resolve_precision(trainer["precision"], trainer["accelerator"])
    settings = {"precision": precision, "device": lightning.strategy.root_device.type}  # what else a score depends on
    model = fingerprint(zeroshot)
    cache = ScoreCache(cache_folder() / "scores", model, settings)
    whole = trainer["limit_val_batches"] is None and not trainer["fast_dev_run"]
    alone = lightning.world_size == 1 and whole
    with one_at_a_time(cache.folder / model) if alone else nullcontext():
        known = {s.name: cache.get(s) if whole else None for s in data.sets}
        missing = [s for s in data.sets if known[s.name] is None]
        if missing:
            log.info("evaluating the zero-shot model")
            for name, score in evaluate(zeroshot, data, trainer, folder, missing).scores.items():
                known[name] = score
                if whole and is_first_process():
                    cache.put(next(s for s in missing if s.name == name), score)
    return as_scores({name: score for name, score in known.items() if score is not None})
