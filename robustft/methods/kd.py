"""Knowledge distillation: cross-entropy on x, the student's and the teacher's softened logits brought together.

Hinton, Vinyals, Dean: Distilling the knowledge in a neural network, 2015. On the images as they are, or with a mask on
the counterfactual samples; the rest is the paper's method.
"""

from robustft.experiment import Run
from robustft.training.loop import Trained


def make(run: Run) -> Trained:
    return run.train(run.student(), run.distillation(temperature=run.cfg.temperature))
