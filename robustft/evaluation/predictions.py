"""`predictions.csv.gz`: what a model said of every image, and what would have been right.

The file stands by itself: the accuracy of each set can be computed from it alone, with a CSV reader and gzip.

    set               name of the evaluation set
    image             the image's path within the set, or its number
    label             what it shows: the right classes' names, " / " between them where several are right
    prediction        the name of the predicted class
    right_classes     the right classes' positions in the run's list of classes, spaces between them
    predicted_class   the predicted class's position in that list
    correct           1 if `predicted_class` is among `right_classes`, else 0

Names are for reading and may occur twice in a list (ImageNet has two classes called "missile"); positions tell classes
apart, and are the same in every set of a run, also in those that have some of the classes only.
"""

import csv
import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from robustft.common.files import atomic
from robustft.data.sets import EvaluationSet
from robustft.evaluation.evaluator import UNSEEN

FILE = "predictions.csv.gz"
COLUMNS = ("set", "image", "label", "prediction", "right_classes", "predicted_class", "correct")


def write_predictions(
    path: Path,
    sets: Sequence[EvaluationSet],
    predictions: Mapping[str, Int64[Tensor, " images"]],
    class_names: Sequence[str],
) -> None:
    """Write the file, atomically; images that were not evaluated have no row.

    Args:
        predictions: by set, the predicted class of each image as a position in ``class_names``.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(COLUMNS)
    for evaluation_set in sets:
        if evaluation_set.name in predictions:
            rows.writerows(_rows(evaluation_set, predictions[evaluation_set.name], class_names))
    with atomic(path) as partial:
        partial.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _rows(
    evaluation_set: EvaluationSet, predictions: Int64[Tensor, " images"], class_names: Sequence[str]
) -> Iterator[tuple[str, str, str, str, str, int, int]]:
    right = [row.nonzero().flatten().tolist() for row in evaluation_set.correct]
    names = [" / ".join(class_names[k] for k in of_label) for of_label in right]
    places = [" ".join(map(str, of_label)) for of_label in right]
    labels = evaluation_set.dataset.labels.tolist()
    for image, label, guess in zip(evaluation_set.keys, labels, predictions.tolist(), strict=True):
        if guess != UNSEEN:
            correct = int(guess in right[label])
            yield evaluation_set.name, image, names[label], class_names[guess], places[label], guess, correct
