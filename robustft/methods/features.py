"""The training images as features of a frozen backbone: encoded once, kept, and trained on like images."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustft.common.cache import cache_folder, digest, fingerprint, remembered
from robustft.common.memory import EVALUATION, enough_memory
from robustft.common.wording import counted
from robustft.data.datamodule import RobustnessData
from robustft.data.sampling import TrainSampler
from robustft.data.sets import Batch, EvaluationSet, ImageSet, Selection, TensorImages
from robustft.evaluation.evaluator import Evaluator
from robustft.models.classifier import Classifier
from robustft.training.loop import planned_steps
from robustft.training.recipe import Training
from robustft.training.trainer import agreement, make_trainer, resolve_precision

log = logging.getLogger(__name__)


class Probe(Classifier):
    """The head of ``model`` (shared, not copied) as a classifier whose "images" are features f(x)."""

    def __init__(self, model: Classifier) -> None:
        nn.Module.__init__(self)
        self.head = model.head

    def normalise(self, images: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        return images

    def encode(
        self, images: Float[Tensor, "batch features"], masked: Tensor | None = None, kept: Tensor | None = None
    ) -> Float[Tensor, "batch features"]:
        return images

    def forward(self, images: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        return self.classify(images)


class FeatureData(RobustnessData):
    """``data`` with features for images: its training set, batches and hold-out, no other evaluation set.

    Args:
        seed: of the training order.
        dtype: of the features.
    """

    def __init__(self, data: RobustnessData, dimensions: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(
            preprocess=data.preprocess,
            seed=seed,
            batch_size=data.batch_size,
            eval_batch_size=data.eval_batch_size,
            holdout=data.holdout,
            holdout_seed=data.holdout_seed,
        )
        self.name, self.class_names, self.templates = data.name, data.class_names, data.templates
        labels = data.training_set().labels
        self.features = torch.zeros(len(labels), dimensions, dtype=dtype)
        self.devices = data.devices
        self._set = Features(self.features, labels)
        self.split, self.training_order = data.split, data.training_order  # type: ignore[method-assign]

    def training_set(self) -> "Features":
        return self._set

    def evaluation_sets(self) -> list[EvaluationSet]:
        return []

    def positions(self, steps: int | None) -> Int64[Tensor, " chosen"]:
        """Training images (hold-out included) that the first ``steps`` steps of the first epoch need; None: all."""
        if steps is None:
            return torch.arange(len(self._set))
        train, held = self.split
        order = list(TrainSampler(train, self.batch_size, seed=self.seed, order=self.training_order))[
            : steps * self.batch_size
        ]
        return torch.cat([torch.tensor(order).unique(), held]).sort().values

    def _holdout_set(self) -> EvaluationSet:
        held, correct = self.split[1], torch.eye(self.num_classes, dtype=torch.bool)
        held_out = Features(self.features[held], self._set.labels[held])
        return EvaluationSet("holdout", held_out, correct, [str(i) for i in held.tolist()])


class Features(TensorImages):
    """A set whose "images" are features."""

    def __init__(self, features: Float[Tensor, "images dimensions"], labels: Int64[Tensor, " images"]) -> None:
        self.images, self.labels = features, labels


class Encoder(Evaluator):
    """Encodes an evaluation set; after ``trainer.validate`` see ``features``, in the order of the set."""

    features: Float[Tensor, "images dimensions"]

    def __init__(self, model: Classifier, images: EvaluationSet) -> None:
        super().__init__(model, [images])
        empty = torch.zeros(len(images.dataset), model.head.in_features, dtype=model.head.weight.dtype)
        self.register_buffer("features", empty, persistent=False)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.features[batch.indices] = self.model.encode(batch.images).to(self.features.dtype)

    def on_validation_epoch_end(self) -> None:
        """Each device has encoded its share, the rest is zero."""
        self.features = self.trainer.strategy.reduce(self.features, reduce_op="sum")


def features_of(
    model: Classifier,
    images: ImageSet,
    source: RobustnessData,
    options: Mapping[str, Any],
    folder: Path,
    *,
    keep: bool = True,
) -> Float[Tensor, "images dimensions"]:
    """Features of ``images`` by ``model``'s image tower, in their order, on the CPU; all devices of the run take part.

    They are kept in the cache folder by backbone and images: images × features × 4 bytes (ImageNet's training set with
    ViT-B/32: 2.6 GB).

    Args:
        source: the data whose loaders are used.
        options: arguments of Lightning's Trainer.
        folder: of the run.
        keep: False: nobody will ask for them again.
    """

    def encode() -> dict[str, Tensor]:
        log.info("encoding %s once", counted(len(images), "image"))
        correct = torch.eye(source.num_classes, dtype=torch.bool)
        encoder = Encoder(model, EvaluationSet("train", images, correct, keys=()))
        trainer = make_trainer({**options, "limit_val_batches": None, "fast_dev_run": False}, folder)
        with enough_memory("encoding images", EVALUATION):
            trainer.validate(encoder, dataloaders=source.eval_loader(encoder.sets[0]), verbose=False)
        model.cpu()
        return {"features": encoder.features.cpu()}

    if not keep:
        return encode()["features"]
    precision = resolve_precision(options["precision"], options["accelerator"])
    key = digest(fingerprint(model.visual), images.identity(), precision, options["accelerator"])
    agree = agreement(make_trainer(options, folder))
    return remembered(cache_folder() / "features" / f"{key}.safetensors", encode, agree)["features"]


def encoded(model: Classifier, training: Training) -> FeatureData:
    """What the head of ``model`` is trained on: features of the training set, encoded once.

    Of a training that ends within its first epoch (a look whether it runs) only the images that it meets are encoded.
    """
    if training.data.augments:
        log.info("features are of the images as they are: augmentation is for the steps that follow")
    options, folder, source = dict(training.trainer), training.folder, training.data
    data = FeatureData(source, model.head.in_features, training.seed, model.head.weight.dtype)
    steps, epoch = (
        planned_steps(data, make_trainer(options | limits, folder))
        for limits in ({}, {"max_epochs": 1, "max_steps": -1})
    )
    short = steps <= epoch and steps < data.train_images // data.batch_size
    positions = data.positions(steps if short else None)
    images = Selection(source.training_set(), positions)
    data.features[positions] = features_of(model, images, source, options, folder, keep=not short)
    return data
