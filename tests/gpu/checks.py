"""What is asked of a GPU, with the device for an argument: rehearsed on the CPU (test_rehearsal.py)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustft.bench.steps import BETA, MASK
from robustft.common.randomness import generator
from robustft.counterfactual.cam import make_cam
from robustft.counterfactual.fill import Counterfactual, make_fill, replace_patches, single_source
from robustft.counterfactual.mask import make_mask
from robustft.data.sets import Batch
from robustft.evaluation.evaluate import Evaluation, evaluate
from robustft.experiment import options
from robustft.inputs import make_metrics
from robustft.methods.counterfactual import CounterfactualFinetune
from robustft.models.classifier import Architecture, Classifier
from robustft.models.weights import create_clip
from robustft.models.zeroshot import preprocess_of
from robustft.training.method import AUTOCAST
from tests.evaluation.test_metrics import cases, made
from tests.small import prepared

ARCHITECTURES = {"vitb32": "ViT-B-32-quickgelu", "tiny": "tiny"}
CLASSES, BATCH = 10, 8

# By precision: the error of a weight's gradient relative to that gradient, as vectors, of the worst weight, and the
# relative error of the loss, against float32 on the CPU. float32: sums of at most 3,072 products in another order,
# sqrt(3072) * 2^-24 = 3e-6 each and a hundred of them behind one another (TF32 is off). The others: gradients two to
# three times what ViT-B/32 gives under the autocast of CPUs, 0.104 in bfloat16 and 0.003 in float16; the loss one unit
# in the last place of the format, 2^-8 and 2^-11 (found there: 2e-4 and 8e-5).
TOLERANCES = {"32-true": (1e-3, 1e-4), "bf16-mixed": (0.2, 2**-8), "16-mixed": (0.01, 2**-11)}


def models(name: str) -> tuple[Classifier, Classifier]:
    """Student and teacher with random weights, on the CPU; the teacher is not the student's twin."""
    architecture = ARCHITECTURES[name]
    made = []
    for seed in (0, 1):
        visual: Any = create_clip(architecture, None, seed).visual
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = nn.Linear(visual.output_dim, CLASSES)
        made.append(Classifier(visual, head, Architecture(architecture, {}, preprocess_of(architecture, None))))
    return made[0].train(), made[1].eval().requires_grad_(False)


def batch(student: Classifier) -> tuple[Tensor, Tensor]:
    random, side = generator("test", 7), student.preprocess.size
    pixels = torch.randint(0, 256, (BATCH, 3, side, side), generator=random, dtype=torch.uint8)
    return pixels, torch.randint(CLASSES, (BATCH,), generator=random)


def step(
    name: str, device: str, precision: str, around: Callable[[], AbstractContextManager[Any]] | None = None
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the method's step with an object mask and single-fill, on the CPU afterwards.

    The masks are those of a map that every device is given, and the permutation too: a patch whose value is at the
    threshold, or another random stream, would make another sample.

    Args:
        around: is entered for a second step, whose gradients are thrown away.
    """
    student, teacher = (deepcopy(model).to(device) for model in models(name))
    pixels, labels = (part.to(device) for part in batch(student))
    dtype = AUTOCAST.get(precision)
    if dtype is not None:
        teacher.keep_in(dtype)
    method = CounterfactualFinetune(student, teacher, beta=BETA, mask=MASK, fill="none")
    cams = torch.rand(BATCH, student.patches, generator=generator("test", 3)).to(device)
    source = single_source(BATCH, generator("test", 4)).to(device)
    mask = make_mask("object", student.patches, threshold=0.3)

    def given(size: int, cam: Tensor, random: torch.Generator) -> Tensor:
        return mask(size, cams + 0 * cam, random)  # the map is taken all the same

    def fill(images: Tensor, replaced: Tensor, random: torch.Generator) -> Counterfactual:
        return Counterfactual(
            replace_patches(images, replaced, source[:, None].expand_as(replaced), student.patch_size)
        )

    method.mask, method.fill = given, fill
    # Of a loss in float16 gradients would be too small for their number format: Lightning's scaler does this.
    scale = 2.0**12 if precision == "16-mixed" else 1.0
    random = generator("test", 5, device=device)
    method.random = lambda batch_idx: random  # type: ignore[method-assign]

    def back_propagate(part: Tensor) -> Tensor:
        (scale * part).backward()
        return part.detach()

    method.back_propagate = back_propagate  # type: ignore[method-assign]

    def once() -> Tensor:
        images = student.preprocess.normalise(pixels)
        autocast = partial(
            torch.autocast, torch.device(device).type, dtype or torch.bfloat16, enabled=dtype is not None
        )
        with autocast():
            loss = method.training_step(Batch(images, labels, torch.arange(BATCH, device=device)), 0)
        (scale * loss).backward()
        return loss.detach()

    loss = once()
    gradients = {key: value.grad.float().cpu() / scale for key, value in student.named_parameters()}
    if around is not None:
        with around():
            once()
    return float(loss), gradients


def compare(name: str, device: str, precision: str) -> tuple[float, float]:
    """The errors that TOLERANCES limits."""
    expected_loss, expected = step(name, "cpu", "32-true")
    loss, gradients = step(name, device, precision)
    assert all(value.isfinite().all() for value in gradients.values())
    worst = max(
        float((value - expected[key]).norm() / expected[key].norm())
        for key, value in gradients.items()
        if not key.endswith("attn.in_proj_bias")  # that of keys changes nothing: its gradient is rounding
    )
    return worst, abs(loss / expected_loss - 1)


def maps(name: str, device: str, kind: str) -> Tensor:
    """Maps of a batch, on the CPU afterwards."""
    student = models(name)[0].to(device)
    pixels, labels = (part.to(device) for part in batch(student))
    return make_cam(kind)(student, student.preprocess.normalise(pixels), labels)[-1].cpu()


def samples(device: str, kind: str, fill: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, the mask and the counterfactual sample of a batch of patches, made on a device."""
    random = generator("test", 11, device=device)
    pixels = torch.rand(BATCH, 3, 64, 64, generator=generator("test", 2)).to(device)
    cam = torch.rand(BATCH, 64, generator=generator("test", 3)).to(device)
    mask = make_mask(kind, 64, threshold=0.3, rate=0.5)(BATCH, cam, random)
    made = make_fill(fill, 8)(pixels, mask, random).images
    return pixels.cpu(), mask.cpu(), made.cpu()


def measured(name: str, device: str, around: Callable[[], AbstractContextManager[Any]] = nullcontext) -> list[float]:
    """A metric of several sets, told of them batch by batch on a device.

    Args:
        around: is entered for all batches but the first, which loads kernels.
    """
    values = []
    for p, right in cases():
        metric = made(name)
        metric.start(right.shape[1])
        metric = metric.to(device)
        parts = [(a.to(device), b.to(device)) for a, b in zip(p.float().split(30), right.split(30), strict=True)]
        metric.update(*parts[0])
        with around():
            for part in parts[1:]:
                metric.update(*part)
        values.append(float(metric.compute()))
    return values


def evaluated(folder: Path, trainer: str) -> Evaluation:
    """The embedded model on a few scenes, with all that is kept of it."""
    run = prepared(folder, "model.pretrained=embedded", f"trainer={trainer}", "trainer.precision=32-true")
    more: dict[str, Any] = {"metrics": make_metrics(run.cfg, run), "keep_predictions": True, "keep_logits": True}
    return evaluate(run.zeroshot, run.data, options(run.cfg), run.folder, **more)
