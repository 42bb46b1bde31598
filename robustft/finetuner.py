"""Robust fine-tuning: the paper's training step.

Xiao, Tang, Wei, Liu, Lin: Masked Images Are Counterfactual Samples for Robust Fine-tuning, CVPR 2023.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from robustft.clip.classifier import Classifier
from robustft.counterfactual.fill import Counterfactual
from robustft.data.sampling import generator
from robustft.data.sets import Batch, EvaluationSet
from robustft.distillation import Distillation, feature_distance
from robustft.errors import UserError
from robustft.evaluation.evaluator import Evaluator


@dataclass(frozen=True)
class Schedule:
    """AdamW under a one-cycle cosine schedule of ``steps`` optimiser steps (METHOD defaults in conf/model).

    ``warmup`` is the fraction of steps on which the learning rate rises from lr/25; it ends at lr/250,000.
    """

    lr: float
    weight_decay: float
    betas: tuple[float, float]
    warmup: float
    steps: int


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
        x, y = batch.images, batch.labels
        if self.distillation is None:
            loss = F.cross_entropy(self.student(x), y)
            self._report(loss=loss)
            return loss

        distill, teacher, random = self.distillation, self.distillation.teacher, self._random(batch_idx)
        features, logits, cam = distill.explain(
            self.student, teacher, x, y
        )  # one forward of x; the CAM comes with it
        ce = F.cross_entropy(logits, y)
        if distill.mask is None:
            masked = None
            distance = distill.distance(self.student, teacher, Counterfactual(x), features)
        else:
            mask = distill.mask(len(x), cam, random)  # which patches to replace
            x_cf = distill.fill(x, mask, random)  # the counterfactual sample
            masked = mask.float().mean()
            distance = distill.distance(self.student, teacher, x_cf, None)
        loss = ce + distill.beta * distance
        self._report(loss=loss, ce=ce, distance=distance, masked=masked)
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:
            self.log(
                "train/disagreement_x",
                feature_distance(self.student, teacher, Counterfactual(x), features.detach()),
            )
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        schedule = self.schedule
        optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=schedule.lr,
            betas=schedule.betas,
            weight_decay=schedule.weight_decay,
            fused=True,
        )
        warmup = schedule.warmup
        if warmup * schedule.steps == 1:
            warmup *= 1 + 1e-9  # OneCycleLR divides by the length of a rise that is exactly one step
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=schedule.lr, total_steps=schedule.steps, pct_start=warmup
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
            self.distillation.teacher.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schedule"] = asdict(self.schedule)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["schedule"]
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

    def _report(self, **terms: Tensor | None) -> None:
        """Log without waiting for the device; ``terms`` stay at hand for the check that they are finite."""
        self.terms = {name: value.detach() for name, value in terms.items() if value is not None}
        self.log_dict({f"train/{name}": value for name, value in self.terms.items()}, prog_bar=True)
