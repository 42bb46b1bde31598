"""How far student and teacher disagree through training, on images as they are and on every kind of counterfactual.

MSE(f̂, f) over the same images, masks and fills at every measurement: what the distillation of one kind would see, had
the student come this far. The paper's reason for refilling is that it enlarges this disagreement.
"""

import csv
import io
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from robustft.common import files
from robustft.common.randomness import generator
from robustft.counterfactual.cam import relevance
from robustft.counterfactual.distillation import feature_distance
from robustft.counterfactual.fill import Counterfactual, make_fill
from robustft.counterfactual.mask import kept_patches, make_mask
from robustft.data.datamodule import RobustnessData
from robustft.data.sampling import draw
from robustft.models.classifier import Classifier
from robustft.training.checkpoints import between_steps

FACTUAL = "factual"
MASKS, FILLS = ("random", "context", "object"), ("none", "single", "multi")
KINDS = (FACTUAL, *(f"{mask}_{fill}" for mask in MASKS for fill in FILLS))
FILE = "disagreement.csv"


class Disagreement(Callback):
    """Measures before the first step and then ``times`` times, evenly, up to the last; in float32.

    Leaves ``folder/disagreement.csv`` (step and one column for each of KINDS) and logs ``disagreement/<kind>``. The
    images are of the hold-out, of the ID set where there is none. Random masks have RATE, the others THRESHOLD and the
    student's relevance over all layers, whatever the run's own mask; fills take patches from as many images as in
    training. Nothing that training draws is touched. In float32: it can take twice the memory of a step in bfloat16.

    Args:
        teacher: is copied, and stays in float32.
        times: measurements after the first, at least 1.
        steps: optimiser steps of the training.
        done: called after a measurement.
    """

    RATE, THRESHOLD, IMAGES = 0.5, 0.3, 256

    def __init__(
        self,
        teacher: Classifier,
        data: RobustnessData,
        folder: Path,
        *,
        times: int,
        steps: int,
        seed: int,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self.teacher = deepcopy(teacher).eval().requires_grad_(False)
        self.data, self.path, self.seed = data, folder / FILE, seed
        self.due = {round(steps * k / times) for k in range(times + 1)}
        self.done = done
        self.rows: dict[int, list[float]] = {}
        self.images = torch.empty(0)
        self.labels = torch.empty(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._take_images(trainer)
        self.rows = {step: row for step, row in read(self.path).items() if step <= trainer.global_step}
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        due = trainer.global_step in self.due and trainer.global_step not in self.rows
        if trainer.is_global_zero and due and between_steps(trainer):
            self._measure(trainer, pl_module)

    def _take_images(self, trainer: Trainer) -> None:
        images = next((s for s in self.data.sets if s.name == "holdout"), self.data.sets[0]).dataset
        chosen = draw(len(images), min(self.IMAGES, len(images)), self.seed)
        if len(chosen) % self.at_once(trainer) == 1:  # an image alone has none to take patches from
            chosen = chosen[:-1]
        self.images = torch.stack([images[int(index)][0] for index in chosen])
        self.labels = images.labels[chosen]

    def at_once(self, trainer: Trainer) -> int:
        """Images of a device's micro-batch."""
        return self.data.batch_size // (trainer.world_size * trainer.accumulate_grad_batches)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        student: Any = pl_module.get_submodule("model")
        device = pl_module.device
        teacher = self.teacher.to(device)
        at_once = self.at_once(trainer)
        sums = torch.zeros(len(KINDS), device=device)
        with torch.autocast(device.type, enabled=False):
            for number, (pixels, y) in enumerate(
                zip(self.images.split(at_once), self.labels.split(at_once), strict=True)
            ):
                x = student.preprocess.normalise(pixels.to(device))
                random = (self.seed, number)
                found = counterfactuals(student, x, y.to(device), self.RATE, self.THRESHOLD, random)
                with torch.no_grad():
                    distances = [feature_distance(student, teacher, x_cf) for _, x_cf in found]
                sums += len(y) * torch.stack(distances)
        row = (sums / len(self.labels)).tolist()
        self.rows[trainer.global_step] = row
        for logger in trainer.loggers:
            named = {f"disagreement/{kind}": value for kind, value in zip(KINDS, row, strict=True)}
            logger.log_metrics(named, step=trainer.global_step)
        write(self.path, self.rows)
        self.done()


def counterfactuals(
    student: Classifier,
    x: Float[Tensor, "batch 3 height width"],
    y: Int64[Tensor, " batch"],
    rate: float,
    threshold: float,
    seed: tuple[int, ...],
) -> Iterator[tuple[str, Counterfactual]]:
    """The images as every one of KINDS, masked by the student's relevance; equal masks for all fills of a mask.

    Random masks without fill leave an exact number of patches, so they are draws of their own.
    """
    yield FACTUAL, Counterfactual(x)
    with torch.enable_grad():
        cam = relevance(student, x, y)[-1]
    for kind in MASKS:
        for name in FILLS:
            drops_tokens = kind == "random" and name == "none"
            random = generator("disagreement", *seed, device=x.device)
            mask = make_mask(kind, student.patches, threshold=threshold, rate=rate, exact=drops_tokens)
            kept = kept_patches(student.patches, rate) if drops_tokens else None
            yield (
                f"{kind}_{name}",
                make_fill(name, student.patch_size, kept)(x, mask(len(x), cam, random), random),
            )


def read(path: Path) -> dict[int, list[float]]:
    """Measurements by step, in the order of KINDS; none where there is no such file."""
    return parse(path.read_text("utf-8")) if path.exists() else {}


def parse(text: str) -> dict[int, list[float]]:
    """Measurements by step, in the order of KINDS, from the text of such a file."""
    return {int(row["step"]): [float(row[kind]) for kind in KINDS] for row in csv.DictReader(io.StringIO(text))}


def write(path: Path, rows: dict[int, list[float]]) -> None:
    """The measurements as CSV, in the order of the steps."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("step", *KINDS))
    lines.writerows((step, *(f"{value:.6g}" for value in rows[step])) for step in sorted(rows))
    files.write(path, text.getvalue())
