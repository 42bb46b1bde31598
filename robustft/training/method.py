"""What every training method has: a student, maybe a teacher, an optimiser, its schedule, evaluation, logging.

A method of one's own is a subclass with a ``training_step``; docs/extending.md shows one from end to end.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.data.sets import Batch
from robustft.evaluation.evaluator import Evaluator
from robustft.models.classifier import Classifier
from robustft.training.checkpoints import logs_at
from robustft.training.constraint import Constraint
from robustft.training.lightning_private import is_attached
from robustft.training.moving import Moving, MovingAverage
from robustft.training.parts import Parts, as_groups
from robustft.training.recipe import Recipe, Training

# Precisions of Lightning's under which the teacher's weights are cast once and for all.
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

ParameterGroup = dict[str, Any]


class Method(Evaluator, ABC):
    """A way to fine-tune ``student``, under Lightning.

    A subclass says in ``training_step`` what a step minimises, in terms of ``self.student`` and ``self.teacher``, and
    ends with ``return self.log_terms(loss=..., ...)``. What else it may say: ``parameters_to_train``, ``after_step``,
    ``prepare``, ``classifier`` and ``result``. What it is given follows from the names of its ``__init__``'s
    parameters: those of ``robustft.inputs.Inputs``, and its own settings, which are ``method.<name>`` when typed.

    The teacher is no submodule: it is never trained, never in a checkpoint, never in a gradient bucket. One that moves
    (``moving``) is in checkpoints. Modules of a method's own are all of it, like anywhere in Lightning.

    Example:
        >>> class LabelSmoothing(Method):
        ...     def __init__(self, student: Classifier, smoothing: float = 0.1) -> None:
        ...         super().__init__(student)
        ...         self.smoothing = smoothing
        ...
        ...     def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        ...         logits = self.student(batch.images)
        ...         loss = nn.functional.cross_entropy(logits, batch.labels, label_smoothing=self.smoothing)
        ...         return self.log_terms(loss=loss)

    Attributes:
        light: a step takes next to no memory (of the head on known features), so no batch is too large.
        terms: of the last micro-batch, without their graph.
    """

    light = False

    def __init__(self, student: Classifier, teacher: Classifier | None = None) -> None:
        super().__init__(student, [])
        self._frozen = (teacher,)  # in a tuple: torch registers modules, not what a tuple holds
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        self.seed, self.steps = 0, 1
        self.recipe = Recipe({"lr": 0.0, "weight_decay": 0.0})
        self.constraints: Sequence[Constraint] = ()
        self.parts = Parts()
        self.moving: Moving | None = None
        self.moving_average: MovingAverage | None = None
        self.terms: dict[str, Tensor] = {}

    @property
    def student(self) -> Classifier:
        return self.model

    @property
    def teacher(self) -> Classifier | None:
        return self._frozen[0]

    @property
    def teacher_moves(self) -> bool:
        """Whether the teacher is the moving average."""
        return self.moving_average is not None and self.teacher is self.moving_average.model

    # What a method of one's own may say

    @abstractmethod
    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """The loss of a micro-batch, by way of ``log_terms``."""

    def prepare(self, training: Training) -> Training:
        """Do what comes before the first step; say how the run trains where that is not as configured."""
        return training

    def parameters_to_train(self) -> Iterable[nn.Parameter] | Iterable[ParameterGroup]:
        """Parameters, or groups of them with settings of their own, as torch's optimisers take them."""
        return self.student.parameters()

    def after_step(self) -> None:
        """Is called after every step of the optimiser: moving averages, projections."""

    def classifier(self) -> Classifier:
        """What is evaluated at this moment, and kept where it is the best so far."""
        if self.moving is not None and self.moving.result and self.moving_average is not None:
            return self.moving_average.model
        return self.student

    def result(self) -> Classifier:
        """What the run leaves, once ``classifier()`` has its best weights back."""
        return self.classifier()

    def forwards(self, batch: Batch) -> float:
        """What a step on ``batch`` cannot cost less than, in forward passes of the image tower over it.

        Forward and backward of the student are three. ``robustft bench --methods`` compares a step's time with it; of
        one that takes more passes (a teacher's, say) the method says so here.
        """
        return 0.0 if self.light else 3.0

    # What a training step is written with

    def random(self, batch_idx: int) -> torch.Generator:
        """A random stream on the device that depends on (seed, micro-batch since the start of training, device)."""
        if not is_attached(self):
            return generator("training step", self.seed, batch_idx, 0, device=self.device)
        micro_batch = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        return generator("training step", self.seed, micro_batch, self.global_rank, device=self.device)

    def measures(self) -> bool:
        """Whether Lightning logs this step: what is not needed for the loss is measured then."""
        return is_attached(self) and logs_at(self.trainer, self.trainer.global_step + 1)

    def back_propagate(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Add the gradient of one term of the loss now, so that its graph is freed before the next one's is made.

        Returns:
            Its value. The gradient of what ``training_step`` returns is the rest, and the two add up.
        """
        if not is_attached(self):
            loss.backward()
        else:  # as Lightning does it: scaled for accumulation, under the precision and strategy of the trainer
            with torch.autocast(loss.device.type, enabled=False):  # as outside of training_step
                self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, None)
        return loss.detach()

    def log_terms(
        self,
        loss: Float[Tensor, ""],
        *,
        also: Mapping[str, Float[Tensor, ""]] | None = None,
        **terms: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Log the loss and its terms as ``train/<name>``, never waiting for the device; the loss, to return.

        Args:
            also: what is logged and not shown in the progress bar.
        """
        self.terms = {name: value.detach() for name, value in {"loss": loss, **terms}.items()}
        if is_attached(self) and (self.measures() or self.device.type == "cpu"):
            # Lightning reads the progress bar's numbers at every later step: on a device, it would wait for that.
            logged = {**self.terms, **(also or {})}
            values = torch.stack([value.detach().float() for value in logged.values()]).cpu()
            for name, value in zip(logged, values, strict=True):
                self.log(f"train/{name}", value, prog_bar=name in self.terms)
        return loss

    def keep_average(self, moving: Moving | None, steps: int) -> None:
        """Begin the average of the weights that the run asks for; it may be the teacher from now on.

        Raises:
            UserError: it is to be the result of a method that says itself what its result is.
        """
        self.moving = moving
        teacher = self.teacher if moving is not None and moving.teaches else None
        if moving is None or not (teacher is not None or moving.result):
            return
        if moving.result and type(self).classifier is not Method.classifier:
            raise UserError(
                f"result=average: {type(self).__name__} says itself which weights are evaluated. Leave out result="
            )
        self.moving_average = MovingAverage(self.student if teacher is None else teacher, moving.rule, steps)
        if teacher is not None:
            self._frozen = (self.moving_average.model,)

    # What Lightning calls

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups: Any = self.parts.groups(self.student, as_groups(list(self.parameters_to_train())))
        self.trained = [p for group in groups for p in group["params"]]
        if not self.trained:
            raise UserError("train: nothing of it is trained by this method. Choose other parts, or leave it out")
        adam = self.recipe.adam
        for constraint in self.constraints:
            constraint.attach(self.student, self.device)
        own = next((made for c in self.constraints if (made := c.optimizer(groups, adam)) is not None), None)
        # Fused, its scaled gradients would be clipped in float16.
        optimizer = own or torch.optim.AdamW(groups, **adam, fused=self.trainer.precision != "16-mixed")
        for constraint in self.constraints:
            constraint.stepped_by = optimizer
        schedule: Any = self.recipe.scheduler(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's own refuses fused AdamW under mixed precision; bf16 gradients need no unscaling."""
        for constraint in self.constraints:
            constraint.add_gradient()
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.trained, gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.trained, gradient_clip_val)

    def optimizer_zero_grad(self, *_: Any) -> None:
        """Lightning's place for it is after ``back_propagate``: ``optimizer_step`` does it instead."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            self.complete_step(optimizer)
            return
        taken: list[bool] = []
        with _hooked(optimizer, lambda *_: taken.append(True)):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if taken:
            self.complete_step(optimizer)
        else:  # gradients were infinite in float16, and the step was left out: nothing has moved
            optimizer.zero_grad()

    def complete_step(self, optimizer: Any) -> None:
        """Do what follows a step of the optimiser: fresh gradients, projections, the moving average."""
        optimizer.zero_grad()
        for constraint in self.constraints:
            constraint.project()
        if self.moving_average is not None:
            self.moving_average.update(self.student)
        self.after_step()

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            teacher = self.teacher.to(self.device)
            if self.trainer.precision in AUTOCAST and not self.teacher_moves:
                teacher.keep_in(AUTOCAST[self.trainer.precision])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["recipe"] = {"steps": self.steps, **self.recipe.settings}
        checkpoint["constraints"] = [constraint.state_dict() for constraint in self.constraints]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        now = {"steps": self.steps, **self.recipe.settings}
        saved = checkpoint["recipe"]
        for key in (key for key, value in now.items() if saved.get(key) != value):
            raise UserError(
                f"this run cannot be resumed with another schedule: {key} was {saved.get(key)}, now it is {now[key]}."
                " Resume with the settings it was started with, or start a new run."
            )
        for constraint, state in zip(self.constraints, checkpoint["constraints"], strict=True):
            constraint.load_state_dict(state)


@contextmanager
def _hooked(optimizer: Any, done: Callable[..., None]) -> Iterator[None]:
    """Calls ``done`` after each step that the optimiser takes meanwhile."""
    handle = getattr(optimizer, "optimizer", optimizer).register_step_post_hook(done)
    try:
        yield
    finally:
        handle.remove()
