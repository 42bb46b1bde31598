"""LP-FT: a linear probe first, then all weights from there.

Kumar et al.: Fine-tuning can distort pretrained features and underperform out-of-distribution, ICLR 2022.
"""

import logging

from torch import Tensor

from robustft.cli import identity
from robustft.common import configs
from robustft.common.cache import cache_folder, digest, fingerprint, remembered
from robustft.data.sets import digest_of
from robustft.experiment import Run
from robustft.methods.features import Probe, encoded
from robustft.models.classifier import Classifier
from robustft.training.loop import Trained

log = logging.getLogger(__name__)


def make(run: Run) -> Trained:
    student = run.student()
    if run.cfg.resume is None:  # the state to go on from is the second stage's
        probe(run, student)
    log.info("second stage: all weights")
    return run.train(student)


def probe(run: Run, student: Classifier) -> None:
    """The first stage: trains the student's head (``method.probe``), or takes it from the cache folder.

    It depends on the hold-out (its seed orders the images too) and not on the run's seed: runs of the second stage
    that share data.holdout_seed share it.
    """
    cfg, stage = configs.plain(run.cfg), run.cfg.method.probe
    optimizer = cfg["optimizer"] | {"lr": stage.lr, "weight_decay": 0.0}
    trainer = cfg["trainer"] | {"max_epochs": stage.epochs, "enable_checkpointing": False}
    settings = {k: v for k, v in trainer.items() if not identity.INCIDENTAL.fullmatch(f"trainer.{k}")}
    data = run.data
    split = (data.training_set().identity(), digest_of(data.split[1]), data.holdout_seed, data.batch_size)

    def train_head() -> dict[str, Tensor]:
        log.info("first stage: the head alone")
        features = encoded(run, student, data.holdout_seed, stage.epochs)
        changes = {"optimizer": optimizer, "trainer": trainer, "loggers": [], "resume": False, "watch": None}
        run.train(Probe(student), data=features, **changes)
        return student.head.state_dict()

    path = cache_folder() / "probes" / f"{digest(fingerprint(student), split, optimizer, settings)}.safetensors"
    student.head.load_state_dict(remembered(path, train_head, run.together))
