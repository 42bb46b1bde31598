"""The frozen teacher's maps of the training images (``mask.source=teacher``): taken once, kept, then looked up.

The transform is deterministic and the teacher does not change, so neither do its maps.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robustft.common.cache import cache_folder, digest, fingerprint, remembered
from robustft.common.memory import EVALUATION, enough_memory, training_advice
from robustft.common.wording import counted
from robustft.counterfactual.cam import Explain, make_cam
from robustft.data.sets import Batch, EvaluationSet
from robustft.evaluation.evaluator import Evaluator
from robustft.models.classifier import Classifier
from robustft.training.loop import planned_steps
from robustft.training.recipe import Training
from robustft.training.trainer import agreement, make_trainer, resolve_precision

log = logging.getLogger(__name__)


class Mapper(Evaluator):
    """Takes the map of every image of a set; after ``trainer.validate`` see ``cams``, in the order of the set.

    Args:
        at_once: images whose activations are held at a time.
    """

    cams: Float[Tensor, "images patches"]

    def __init__(self, model: Classifier, images: EvaluationSet, explain: Explain, at_once: int) -> None:
        super().__init__(model, [images])
        self.explain, self.at_once = explain, at_once
        self.register_buffer("cams", torch.zeros(len(images.dataset), model.patches), persistent=False)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        for x, y, indices in zip(*(part.split(self.at_once) for part in batch), strict=True):
            self.cams[indices] = self.explain(self.model, x, y)[-1]

    def on_validation_epoch_end(self) -> None:
        """Each device has seen its share, the rest is zero."""
        self.cams = self.trainer.strategy.reduce(self.cams, reduce_op="sum")


def teacher_maps(
    teacher: Classifier, training: Training, mask: Mapping[str, Any]
) -> Float[Tensor, "images patches"] | None:
    """Take the maps of the whole training set, hold-out included, in its order and in float32.

    They are kept in the cache folder by teacher, images, labels, kind of map and precision: training images × patches
    × 4 bytes (ImageNet with ViT-B/32: 250 MB).

    Args:
        mask: cam and layers.

    Returns:
        None if the training is shorter than one epoch: taking the maps of its images on the way is less work.
    """
    data, options, folder = training.data, training.trainer, training.folder
    trainer = make_trainer(dict(options) | {"inference_mode": False, "limit_val_batches": None}, folder)
    if options.get("fast_dev_run") or planned_steps(data, trainer) < data.train_images // data.batch_size:
        return None
    correct = torch.eye(data.num_classes, dtype=torch.bool)
    images = EvaluationSet("train", data.training_set(), correct, keys=())

    def take() -> dict[str, Tensor]:
        log.info("taking the teacher's maps of %s once", counted(len(images.dataset), "training image"))
        at_once = data.batch_size // (trainer.world_size * trainer.accumulate_grad_batches)
        mapper = Mapper(teacher, images, make_cam(mask["cam"], mask["layers"]), at_once)
        advice = training_advice(trainer, teacher, data.batch_size)
        with enough_memory("taking the teacher's maps", *advice, EVALUATION):
            trainer.validate(mapper, dataloaders=data.eval_loader(images), verbose=False)
        teacher.cpu()
        return {"cams": mapper.cams.cpu()}

    precision = resolve_precision(options["precision"], options["accelerator"])
    kind = (mask["cam"], mask["layers"], precision, options["accelerator"])
    path = cache_folder() / "maps" / f"{digest(fingerprint(teacher), images.fingerprint, kind)}.safetensors"
    return remembered(path, take, agreement(trainer))["cams"]
