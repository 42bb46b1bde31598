"""The training steps that are compared, each with everything it needs: zero_grad to the optimiser's step."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from robustft.bench import direct
from robustft.bench.names import MODELS
from robustft.common.errors import UserError
from robustft.common.randomness import generator, seeded
from robustft.counterfactual.fill import make_fill
from robustft.counterfactual.mask import make_mask
from robustft.data.sets import Batch
from robustft.methods.counterfactual import CounterfactualFinetune
from robustft.methods.finetune import Finetune
from robustft.models.classifier import Architecture, Classifier
from robustft.models.weights import create_clip
from robustft.models.zeroshot import preprocess_of
from robustft.training.method import AUTOCAST, Method

BETA, FILL, THRESHOLD, RATE = 30.0, "single", 0.3, 0.5
MASK = {"kind": "object", "threshold": THRESHOLD, "rate": None, "cam": "relevance", "layers": None, "source": "student"}
CHANGES: dict[str, dict[str, Any]] = {"last_layer": {"layers": 1}, "no_fill": {"kind": "random", "rate": RATE}}


@dataclass
class Bench:
    """Models with random weights, a batch, and a step for every variant.

    Variants are named after the step, with "_fp32" in float32, else in ``precision``: "vanilla" fine-tuning;
    ``direct.py``; ours ("exact"), or with maps that are known already ("cached"). And of MORE: with one backward pass
    of both terms, x's graph alive all along; with the relevance of the last layer alone; with random masks and
    no-fill, which shorten the sequence.
    """

    model: str
    batch: int
    precision: str
    device: str
    seed: int = 0
    _optimizers: dict[int, torch.optim.Optimizer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = generator("bench batch", self.seed)
        side = self.student.preprocess.size
        self.x = torch.randn(self.batch, 3, side, side, generator=random).to(self.device)
        classes = self.student.head.out_features
        self.y = torch.randint(classes, (self.batch,), generator=random).to(self.device)
        patches = self.student.patches
        self.maps = torch.rand(self.batch, patches, generator=random).to(self.device)

    @cached_property
    def student(self) -> Classifier:
        name, classes = MODELS[self.model]
        visual: Any = create_clip(name, None, self.seed).visual
        with seeded("bench head", self.seed):
            head = nn.Linear(visual.output_dim, classes)
        return Classifier(visual, head, Architecture(name, {}, preprocess_of(name, None))).to(self.device)

    @cached_property
    def teacher(self) -> Classifier:
        """Not the student's twin: a distance of zero would hide mistakes."""
        teacher = deepcopy(self.student)
        random = generator("bench teacher", self.seed, device=self.device)
        with torch.no_grad():
            for weight in teacher.parameters():
                noise = torch.randn(weight.shape, generator=random, device=self.device)
                weight.add_(0.05 * weight.abs().mean() * noise)
        return teacher.eval().requires_grad_(False)

    @cached_property
    def direct_student(self) -> direct.DirectClassifier:
        return direct.DirectClassifier.like(self.student)

    @cached_property
    def direct_teacher(self) -> direct.DirectClassifier:
        return direct.DirectClassifier.like(self.teacher).eval().requires_grad_(False)

    def forwards(self, kind: str) -> float:
        """Forwards of the backbone per image that a step is worth; vanilla is forward and backward of x."""
        x, x_cf, teacher, gradient_of_map = 3, 3, 1, 1.0
        if kind == "vanilla":
            return x
        if kind == "direct":
            return x + x_cf + teacher + 1 + gradient_of_map  # a forward of its own for the map
        if kind == "cached":
            return x + x_cf + teacher
        if kind == "no_fill":
            return x + (x_cf + teacher) * (1 + int(self.student.patches * (1 - RATE))) / (1 + self.student.patches)
        if kind == "last_layer":
            gradient_of_map /= len(self.student.tower.attentions())
        return x + x_cf + teacher + gradient_of_map

    def autocast(self, variant: str) -> torch.dtype | None:
        """What a variant computes in; None: float32."""
        return None if variant.endswith("_fp32") else AUTOCAST.get(self.precision)

    def step(self, variant: str) -> Callable[[], None]:
        """A whole training step; ready to be called many times."""
        backward = self.backward(variant)
        model = self.direct_student if variant.startswith("direct") else self.student
        optimizer = self._optimizers.setdefault(id(model), torch.optim.AdamW(model.parameters(), lr=0.0, fused=True))

        def step() -> None:
            backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    def backward(self, variant: str) -> Callable[[], Tensor]:
        """Computes the loss and leaves its gradients in the parameters."""
        dtype, kind = self.autocast(variant), variant.removesuffix("_fp32")
        random = generator("bench step", self.seed, device=self.device)
        precision = partial(torch.autocast, self.device, dtype or torch.bfloat16, enabled=dtype is not None)
        if kind == "direct":
            return partial(self._direct, precision, random)
        method = self._method(kind, dtype)
        method.random = lambda batch_idx: random  # type: ignore[method-assign]
        batch = Batch(self.x, self.y, torch.arange(self.batch, device=self.device))
        later: list[Tensor] = []
        if kind == "one_backward":
            method.back_propagate = partial(_keep, later)  # type: ignore[method-assign]

        def backward() -> Tensor:
            with precision():
                loss = method.training_step(batch, 0)
            rest = sum(later, loss)
            later.clear()
            rest.backward()
            return loss.detach()

        return backward

    def _method(self, kind: str, dtype: torch.dtype | None) -> Method:
        if kind == "vanilla":
            return Finetune(self.student)
        teacher = self.teacher
        if dtype is not None:
            teacher = deepcopy(teacher)
            teacher.keep_in(dtype)
        fill = "none" if kind == "no_fill" else FILL
        mask = MASK | CHANGES.get(kind, {})
        method = CounterfactualFinetune(self.student, teacher, beta=BETA, mask=mask, fill=fill)
        method.maps = self.maps if kind == "cached" else None
        return method

    def _direct(self, precision: Callable[[], Any], random: torch.Generator) -> Tensor:
        mask = make_mask("object", self.student.patches, threshold=THRESHOLD)
        fill = make_fill(FILL, self.student.patch_size)
        student, teacher = self.direct_student, self.direct_teacher
        with precision():
            loss = direct.objective(student, teacher, self.x, self.y, random, mask=mask, fill=fill, beta=BETA)
        loss.backward()
        return loss.detach()

    def check(self) -> float:
        """The largest difference of a gradient between the direct step and ours in float32, relative to its largest
        magnitude.

        Raises:
            UserError: the two steps do not compute the same loss and gradients.
        """
        losses = [float(self.backward(variant)()) for variant in ("exact_fp32", "direct_fp32")]
        worst = 0.0
        for name, weight in self.direct_student.named_parameters():
            ours, theirs = self.student.get_parameter(name).grad, weight.grad
            assert ours is not None and theirs is not None
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
        for model in (self.student, self.direct_student):
            model.zero_grad()
        if abs(losses[0] / losses[1] - 1) > 1e-4 or worst > 1e-3:
            raise UserError(
                f"the direct step and ours differ: losses {losses[1]:.6g} and {losses[0]:.6g}, "
                f"gradients by {worst:.2g} of their largest magnitude. This is a bug: please report it."
            )
        return worst


def _keep(later: list[Tensor], loss: Tensor) -> Tensor:
    later.append(loss)
    return loss.detach()
