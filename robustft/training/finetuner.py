"""Robust fine-tuning: the paper's training step.

Xiao, Tang, Wei, Liu, Lin: Masked Images Are Counterfactual Samples for Robust Fine-tuning, CVPR 2023.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from robustft.common.errors import UserError
from robustft.counterfactual.distillation import Distillation, feature_distance
from robustft.counterfactual.fill import Counterfactual
from robustft.data.sampling import generator
from robustft.data.sets import Batch, EvaluationSet
from robustft.evaluation.evaluator import Evaluator
from robustft.models.classifier import Classifier
from robustft.training.checkpoints import logs_at

# Precisions of Lightning's under which the teacher's weights are cast once and for all.
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Schedule:
    """AdamW under a one-cycle cosine schedule of ``steps`` optimiser steps (defaults in conf/model).

    ``warmup`` is the fraction of steps on which the learning rate rises from lr/25; it ends at lr/250,000. Against it
    β1 falls from ``max_momentum`` to ``base_momentum`` and rises again; β2 is ``beta2``.
    """

    lr: float
    weight_decay: float
    warmup: float
    steps: int
    beta2: float = 0.999
    max_momentum: float = 0.95
    base_momentum: float = 0.85


class Finetuner(Evaluator):
    """Fine-tunes ``student`` with L = CE(g(f(x)), y) + β · MSE(f̂(x_cf), f(x_cf)).

    The teacher is no submodule: it is never trained, never in a checkpoint, never in a gradient bucket.

    Args:
        distillation: the second term; None is vanilla fine-tuning.
        seed: masks and fills depend on (seed, micro-batch since the start of training, device) alone.
    """

    def __init__(
        self,
        student: Classifier,
        sets: Sequence[EvaluationSet],
        schedule: Schedule,
        distillation: Distillation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(student, sets)
        self.schedule = schedule
        self.seed = seed
        self._distillation = (distillation,)  # in a tuple: torch registers modules, not what a tuple holds
        if distillation is not None:
            distillation.teacher.eval().requires_grad_(False)
        self.terms: dict[str, Tensor] = {}  # of the last micro-batch

    @property
    def student(self) -> Classifier:
        return self.model

    @property
    def distillation(self) -> Distillation | None:
        return self._distillation[0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        measure = logs_at(self.trainer, self.trainer.global_step + 1)  # when Lightning logs
        terms = self.objective(
            batch.images, batch.labels, self._random(batch_idx), self._backward, measure, batch.indices
        )
        self.terms = {name: value.detach() for name, value in terms.items()}
        if measure or self.device.type == "cpu":
            # Lightning reads the progress bar's numbers at every later step: on a device, it would wait for that.
            values = torch.stack([value.float() for value in self.terms.values()]).cpu()
            for name, value in zip(self.terms, values, strict=True):
                self.log(f"train/{name}", value, prog_bar=name in ("loss", "ce", "distance", "masked"))
        return terms["loss"]

    def objective(
        self,
        x: Float[Tensor, " batch *image"],  # 3 height width; of a probe, features
        y: Int64[Tensor, " batch"],
        random: torch.Generator,
        backward: Callable[[Tensor], Any],
        measure: bool = False,
        indices: Int64[Tensor, " batch"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """The loss and its terms on a batch.

        Where x and x_cf have graphs of their own, cross-entropy is back-propagated here, by ``backward``, before
        x_cf is encoded: its graph is freed first, which halves the memory. The gradient of what is returned as
        ``loss`` is the rest, and the two add up to that of L.

        Args:
            measure: also return the disagreements MSE(f̂, f) on the factual and on the counterfactual images (one
                more forward of the teacher; where logits are distilled, one of both on x_cf too).
            indices: positions of the images in the training set, for maps that are known already.
        """
        distill = self.distillation
        if distill is None:
            ce = F.cross_entropy(self.student(x), y)
            return {"loss": ce, "ce": ce}
        student, teacher = self.student, distill.teacher

        features, logits, cam = distill.explain(student, teacher, x, y, indices)  # one forward of x and the CAM
        ce = F.cross_entropy(logits, y)
        extra = {}
        if measure:
            extra["disagreement_x"] = feature_distance(student, teacher, Counterfactual(x), features.detach())
        if distill.mask is None:
            x_cf = Counterfactual(x)
            distance = distill.distance(student, teacher, x_cf, features)
        else:
            backward(ce)
            ce = ce.detach()
            mask = distill.mask(len(x), cam, random)  # which patches to replace
            x_cf = distill.fill(x, mask, random)  # the counterfactual sample
            distance = distill.distance(student, teacher, x_cf, None)
            distance = distance + 0 * sum(p.sum() for p in student.head.parameters())  # DDP waits for all parameters
            extra["masked"] = mask.float().mean()
        if measure:
            with torch.no_grad():
                of_features = distill.distance is feature_distance
                extra["disagreement_x_cf"] = distance if of_features else feature_distance(student, teacher, x_cf)
        return {"loss": ce + distill.beta * distance, "ce": ce, "distance": distance, **extra}

    def _backward(self, loss: Tensor) -> None:
        """As Lightning does it: scaled for accumulation, under the precision and strategy of the trainer."""
        with torch.autocast(loss.device.type, enabled=False):  # as outside of training_step
            self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, None)

    def optimizer_zero_grad(self, *_: Any) -> None:
        """Lightning's place for it is between our two backward passes: ``optimizer_step`` does it instead."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        schedule = self.schedule
        optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=schedule.lr,
            betas=(float(schedule.max_momentum), float(schedule.beta2)),
            weight_decay=schedule.weight_decay,
            fused=self.trainer.precision != "16-mixed",  # fused, its scaled gradients would be clipped
        )
        warmup = schedule.warmup
        if warmup * schedule.steps == 1:
            warmup *= 1 + 1e-9  # OneCycleLR divides by the length of a rise that is exactly one step
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=schedule.lr,
            total_steps=schedule.steps,
            pct_start=warmup,
            base_momentum=schedule.base_momentum,
            max_momentum=schedule.max_momentum,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's own refuses fused AdamW under mixed precision; bf16 gradients need no unscaling."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.student.parameters(), gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), gradient_clip_val)

    def on_fit_start(self) -> None:
        if self.distillation is not None:
            teacher = self.distillation.teacher.to(self.device)
            if self.trainer.precision in AUTOCAST:
                teacher.keep_in(AUTOCAST[self.trainer.precision])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schedule"] = asdict(self.schedule)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = dict(checkpoint["schedule"])
        if betas := saved.pop("betas", None):  # of an earlier version
            saved |= {"beta2": betas[1], "max_momentum": 0.95, "base_momentum": 0.85}
        changed = [key for key, value in asdict(self.schedule).items() if saved[key] != value]
        if changed:
            key = changed[0]
            raise UserError(
                f"this run cannot be resumed with another schedule: {key} was {saved[key]}, now it is "
                f"{asdict(self.schedule)[key]}. Resume with the settings it was started with, or start a new run."
            )

    def _random(self, batch_idx: int) -> torch.Generator:
        micro_batch = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        return generator(self.seed, micro_batch, self.global_rank, device=self.device)
