"""A classifier on every evaluation set of a data module: its scores, and what it says of each image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from robustft.common.errors import UserError
from robustft.data.sets import Batch, EvaluationSet
from robustft.evaluation.metrics import SetMetric
from robustft.evaluation.results import Score, Scores
from robustft.evaluation.scoring import start, update, values
from robustft.evaluation.top1 import Top1, predict
from robustft.models.classifier import Classifier
from robustft.training.lightning_private import leave_to_each_device

UNSEEN = -1
PER_IMAGE = ("log_p_right", "max_p", "sum_p2", "entropy")
MakeMetrics = Callable[[], Mapping[str, SetMetric]]


class Evaluator(LightningModule):
    """Validates ``model`` on ``sets``, in their order; after ``trainer.validate`` see ``scores`` and ``predictions``.

    Logs ``holdout/top1``, ``id/top1``, ``ood/<set>`` and their plain mean ``ood/avg``, fractions in 0…1.

    Args:
        sets: all evaluation sets, in the order of the data module's ``val_dataloader()``.
        keep_predictions: remember the predicted class of every image, and four numbers about it (PER_IMAGE).
        keep_logits: remember all logits, on the device.
        metrics: makes what is measured beside top-1, anew for each set.
        temperature: logits are divided by it for metrics of calibrated probabilities; None: these are not measured.

    Raises:
        UserError: the model's logits are not finite.
    """

    def __init__(
        self,
        model: Classifier,
        sets: Sequence[EvaluationSet],
        keep_predictions: bool = False,
        keep_logits: bool = False,
        metrics: MakeMetrics | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # see RobustnessData
        self.model = model
        self.keep_predictions, self.keep_logits = keep_predictions, keep_logits
        self.make_metrics, self.temperature = metrics or dict, temperature
        self.predictions: dict[str, Int64[Tensor, " images"]] = {}
        self.details: dict[str, Float[Tensor, "images 4"]] = {}
        self.logits: dict[str, Float[Tensor, "images classes"]] = {}
        self.scores: dict[str, Score] = {}
        self.evaluate_on(sets)

    def evaluate_on(self, sets: Sequence[EvaluationSet]) -> None:
        """Take ``sets`` in the place of those there were."""
        self.sets = list(sets)
        self.tops = [Top1(evaluation_set.correct) for evaluation_set in self.sets]
        self.more = [dict(self.make_metrics()) for _ in self.sets]
        for evaluation_set, metrics in zip(self.sets, self.more, strict=True):
            start(metrics, int(evaluation_set.allowed.sum()), evaluation_set.groups)
        # Registered, they move with the module.
        self.metrics = nn.ModuleList([*self.tops, *(metric for metrics in self.more for metric in metrics.values())])
        for number, evaluation_set in enumerate(self.sets):
            self.register_buffer(f"allowed{number}", evaluation_set.allowed.nonzero()[:, 0], persistent=False)
            self.register_buffer(f"groups{number}", evaluation_set.groups, persistent=False)
        leave_to_each_device(self, [name for name, _ in self.named_buffers()])  # constants

    def classifier(self) -> Classifier:
        """What is evaluated."""
        return self.model

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Pixels become the model's input here, on the device; of a ``Batch``, or what a method has made of it."""
        return batch._replace(images=self.classifier().normalise(batch.images))

    def on_validation_epoch_start(self) -> None:
        self.scores, self.predictions, self.details, self.logits = {}, {}, {}, {}
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        for metric in (*self.tops, *(metric for metrics in self.more for metric in metrics.values())):
            metric.reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        evaluation_set, top1 = self.sets[dataloader_idx], self.tops[dataloader_idx]
        logits = self.classifier().judge(batch, evaluation_set)
        top1.update(logits, batch.labels)
        self._finite &= logits.isfinite().all()
        name, images = evaluation_set.name, len(evaluation_set.dataset)
        if self.keep_predictions:
            known = self.predictions.setdefault(name, self._filled(UNSEEN, images, dtype=torch.int64))
            known[batch.indices] = predict(logits, top1.correct.any(0))
        if self.keep_logits:
            kept = self.logits.setdefault(name, self._filled(-torch.inf, images, logits.shape[1]))
            kept[batch.indices] = logits.float()
        metrics = self.more[dataloader_idx]
        if metrics or self.keep_predictions:
            allowed = self.get_buffer(f"allowed{dataloader_idx}")
            logits, correct = logits.float()[:, allowed], top1.correct[batch.labels][:, allowed]
            log_p = logits.log_softmax(1)
            groups = getattr(self, f"groups{dataloader_idx}")
            of_batch = None if groups is None else groups[batch.indices]
            update(metrics, logits, log_p, correct, self.temperature, of_batch)
            if self.keep_predictions:
                details = self.details.setdefault(name, self._filled(-torch.inf, images, len(PER_IMAGE)))
                details[batch.indices] = describe(log_p, correct)

    def on_validation_epoch_end(self) -> None:
        together = self.trainer.world_size > 1
        if not self.trainer.strategy.reduce_boolean_decision(bool(self._finite), all=True):
            raise UserError("the model's logits are not finite: its weights overflow. Lower optimizer.lr or beta.")
        for evaluation_set, top1, metrics in zip(self.sets, self.tops, self.more, strict=True):
            if top1.update_called or together:
                self.scores[evaluation_set.name] = top1.score(values(metrics, self.temperature, evaluation_set.groups))
        if together:
            self._gather()
        self.log_dict(summary(self.scores), rank_zero_only=False)

    def _gather(self) -> None:
        """Each process saw its own share; the rest is as small as can be."""
        for evaluation_set in self.sets:
            name, images = evaluation_set.name, len(evaluation_set.dataset)
            if self.keep_predictions:
                mine = self.predictions.get(name, self._filled(UNSEEN, images, dtype=torch.int64))
                self.predictions[name] = self._largest(mine)
                self.details[name] = self._largest(
                    self.details.get(name, self._filled(-torch.inf, images, len(PER_IMAGE)))
                )
            if self.keep_logits:
                shape = (images, evaluation_set.correct.shape[1])
                self.logits[name] = self._largest(self.logits.get(name, self._filled(-torch.inf, *shape)))

    def _largest(self, mine: Tensor) -> Tensor:
        gathered = self.all_gather(mine)
        assert isinstance(gathered, Tensor)
        return gathered.amax(0)

    def _filled(self, value: float, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, value, dtype=dtype, device=self.device)


def describe(log_p: Float[Tensor, "batch allowed"], correct: Bool[Tensor, "batch allowed"]) -> Float[Tensor, "batch 4"]:
    """log p(right), max p, Σ p² and the entropy (in nats) of each image: see PER_IMAGE."""
    p = log_p.exp()
    right = log_p.masked_fill(~correct, -torch.inf).logsumexp(1)
    entropy = -(p * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(1)  # 0 · log 0 is 0
    return torch.stack([right, p.amax(1), p.square().sum(1), entropy], dim=1)


def summary(scores: dict[str, Score]) -> dict[str, float]:
    """Scores under the names that loggers and model selection use.

    Accuracies are ``id/top1``, ``ood/<set>``, ``ood/avg`` and ``holdout/top1``; other metrics ``<metric>/id``,
    ``<metric>/ood/<set>``, ``<metric>/ood/avg`` and ``<metric>/holdout``.
    """
    named = {"holdout/top1": scores["holdout"].top1} if "holdout" in scores else {}
    rest = [name for name in scores if name != "holdout"]
    if rest:
        named["id/top1"] = scores[rest[0]].top1
        named |= {f"ood/{name}": scores[name].top1 for name in rest[1:]}
    if len(rest) > 1:
        named["ood/avg"] = sum(scores[name].top1 for name in rest[1:]) / (len(rest) - 1)
    places = {name: f"ood/{name}" for name in rest} | ({rest[0]: "id"} if rest else {}) | {"holdout": "holdout"}
    for metric in dict.fromkeys(metric for score in scores.values() for metric in score.more):
        values = {name: score.more.get(metric) for name, score in scores.items()}
        named |= {f"{metric}/{places[name]}": value for name, value in values.items() if value is not None}
        shifts = [value for name in rest[1:] if (value := values[name]) is not None]
        if shifts and len(shifts) == len(rest) - 1:
            named[f"{metric}/ood/avg"] = sum(shifts) / len(shifts)
    return named


def as_scores(scores: dict[str, Score]) -> Scores:
    """ID, shifts and hold-out apart, from the scores of an evaluation of all sets."""
    rest = {name: score for name, score in scores.items() if name != "holdout"}
    id_name, *shifts = rest
    return Scores(id_name, rest[id_name], {name: rest[name] for name in shifts}, scores.get("holdout"))
