"""LP-FT: a linear probe first, then all weights from there.

Kumar et al.: Fine-tuning can distort pretrained features and underperform out-of-distribution, ICLR 2022.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from robustft.cli.identity import INCIDENTAL
from robustft.common.cache import cache_folder, digest, fingerprint, remembered
from robustft.data.sets import digest_of
from robustft.methods.finetune import Finetune
from robustft.methods.linear_probe import LinearProbe
from robustft.models.classifier import Classifier
from robustft.training.loop import train
from robustft.training.parts import Parts
from robustft.training.recipe import Training

log = logging.getLogger(__name__)


class LPFT(Finetune):
    """L = CE(g(f(x)), y) over all weights, from a head that was trained alone.

    Args:
        probe: lr and epochs of the first stage.
    """

    def __init__(self, student: Classifier, probe: Mapping[str, Any]) -> None:
        super().__init__(student)
        self.probe = probe

    def prepare(self, training: Training) -> Training:
        if not training.resume:  # the state to go on from is the second stage's
            train_head(self.student, training, self.probe)
        log.info("second stage: all weights")
        return training


def train_head(student: Classifier, training: Training, probe: Mapping[str, Any]) -> None:
    """The first stage: trains the student's head, or takes it from the cache folder.

    It depends on the hold-out (its seed orders the images too) and not on the run's seed: runs of the second stage
    that share data.holdout_seed share it.
    """
    data = training.data
    recipe = training.recipe.changed(lr=probe["lr"], weight_decay=0.0)
    trainer = {**training.trainer, "max_epochs": probe["epochs"], "enable_checkpointing": False}
    settings = {k: v for k, v in trainer.items() if not INCIDENTAL.fullmatch(f"trainer.{k}")}
    split = (data.training_set().identity(), digest_of(data.split[1]), data.holdout_seed, data.batch_size)

    def trained() -> dict[str, Tensor]:
        log.info("first stage: the head alone")
        alone = replace(
            training,
            recipe=recipe,
            trainer=trainer,
            seed=data.holdout_seed,
            constraints=(),
            moving=None,
            parts=Parts(),
            loggers=(),
            resume=False,
            watch=None,
        )
        train(LinearProbe(student), alone)
        return student.head.state_dict()

    key = digest(fingerprint(student), split, recipe.settings, settings)
    path = cache_folder() / "probes" / f"{key}.safetensors"
    student.head.load_state_dict(remembered(path, trained, training.agreement()))
