"""Linear probing: the head alone, from its zero-shot weights, on features of the frozen backbone."""

from dataclasses import replace

from robustft.methods.features import Probe, encoded
from robustft.methods.finetune import Finetune
from robustft.models.classifier import Classifier
from robustft.training.recipe import Training


class LinearProbe(Finetune):
    """L = CE(g(f(x)), y) over the head's weights."""

    light = True

    def __init__(self, student: Classifier) -> None:
        super().__init__(Probe(student))
        self._whole = (student,)  # its head is the probe's; in a tuple: the rest is not trained

    def prepare(self, training: Training) -> Training:
        """Turn the images into features, once. There is nothing to watch then."""
        return replace(training, data=encoded(self._whole[0], training), watch=None)

    def result(self) -> Classifier:
        return self._whole[0]
