"""Top-1 of a classifier on every evaluation set of a data module, with each image's prediction."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from robustft.common.errors import UserError
from robustft.data.sets import Batch, EvaluationSet
from robustft.evaluation.results import Score, Scores
from robustft.evaluation.top1 import Top1, predict
from robustft.models.classifier import Classifier
from robustft.training.lightning_private import leave_to_each_device

UNSEEN = -1


class Evaluator(LightningModule):
    """Validates ``model`` on ``sets``, in their order; after ``trainer.validate`` see ``scores`` and ``predictions``.

    Logs ``holdout/top1``, ``id/top1``, ``ood/<set>`` and their plain mean ``ood/avg``, fractions in 0…1.

    Args:
        sets: all evaluation sets, in the order of the data module's ``val_dataloader()``.
        keep_predictions: remember the predicted class of every image (one integer each, on the device).

    Raises:
        UserError: the model's logits are not finite.
    """

    def __init__(self, model: Classifier, sets: Sequence[EvaluationSet], keep_predictions: bool = False) -> None:
        super().__init__()
        self.model = model
        self.keep_predictions = keep_predictions
        self.predictions: dict[str, Int64[Tensor, " images"]] = {}
        self.scores: dict[str, Score] = {}
        self.evaluate_on(sets)

    def evaluate_on(self, sets: Sequence[EvaluationSet]) -> None:
        """Take ``sets`` in the place of those there were."""
        self.sets = list(sets)
        self.tops = [Top1(evaluation_set.correct) for evaluation_set in self.sets]
        self.metrics = nn.ModuleList(self.tops)  # moves with the module
        leave_to_each_device(self, [name for name, _ in self.named_buffers()])  # constants

    def classifier(self) -> Classifier:
        """What is evaluated."""
        return self.model

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Pixels become the model's input here, on the device."""
        return batch._replace(images=self.classifier().normalise(batch.images))

    def on_validation_epoch_start(self) -> None:
        self.scores = {}
        self.predictions = {}
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        for metric in self.tops:
            metric.reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        logits = self.classifier()(batch.images)
        evaluation_set, metric = self.sets[dataloader_idx], self.tops[dataloader_idx]
        metric.update(logits, batch.labels)
        self._finite &= logits.isfinite().all()
        if self.keep_predictions:
            known = self.predictions.setdefault(evaluation_set.name, self._unseen(len(evaluation_set.dataset)))
            known[batch.indices] = predict(logits, metric.correct.any(0))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.strategy.reduce_boolean_decision(bool(self._finite), all=True):
            raise UserError("the model's logits are not finite: its weights overflow. Lower optimizer.lr or beta.")
        for evaluation_set, metric in zip(self.sets, self.tops, strict=True):
            if metric.update_called or self.trainer.world_size > 1:
                self.scores[evaluation_set.name] = metric.score()
        if self.keep_predictions and self.trainer.world_size > 1:
            for evaluation_set in self.sets:  # each process saw its own share, the rest is UNSEEN = -1
                mine = self.predictions.setdefault(evaluation_set.name, self._unseen(len(evaluation_set.dataset)))
                gathered = self.all_gather(mine)
                assert isinstance(gathered, Tensor)
                self.predictions[evaluation_set.name] = gathered.amax(0)
        self.log_dict(summary(self.scores), rank_zero_only=False)

    def _unseen(self, images: int) -> Int64[Tensor, " images"]:
        return torch.full((images,), UNSEEN, device=self.device)


def summary(scores: dict[str, Score]) -> dict[str, float]:
    """Accuracies under the names that loggers and model selection use."""
    named = {"holdout/top1": scores["holdout"].top1} if "holdout" in scores else {}
    rest = [name for name in scores if name != "holdout"]
    if rest:
        named["id/top1"] = scores[rest[0]].top1
        named |= {f"ood/{name}": scores[name].top1 for name in rest[1:]}
    if len(rest) > 1:
        named["ood/avg"] = sum(scores[name].top1 for name in rest[1:]) / (len(rest) - 1)
    return named


def as_scores(scores: dict[str, Score]) -> Scores:
    """ID, shifts and hold-out apart, from the scores of an evaluation of all sets."""
    rest = {name: score for name, score in scores.items() if name != "holdout"}
    id_name, *shifts = rest
    return Scores(id_name, rest[id_name], {name: rest[name] for name in shifts}, scores.get("holdout"))
