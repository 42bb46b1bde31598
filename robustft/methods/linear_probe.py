"""Linear probing: the head alone, from its zero-shot weights, on features of the frozen backbone."""

from dataclasses import replace

from robustft.experiment import Run
from robustft.methods.features import Probe, encoded
from robustft.training.loop import Trained

HEAD_ALONE = True  # a step takes next to no memory


def make(run: Run) -> Trained:
    student = run.student()
    features = encoded(run, student, run.cfg.seed, run.cfg.trainer.max_epochs)
    probed = run.train(Probe(student), data=features, watch=None)
    return replace(probed, model=student)  # the probe's head is the student's
