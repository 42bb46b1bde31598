"""`predictions.csv.gz`: what a model said of every image, and what would have been right.

The file stands by itself: the accuracy of each set can be computed from it alone, with a CSV reader and gzip.

    set               name of the evaluation set
    image             the image's path within the set, or its number
    label             what it shows: the right classes' names, " / " between them where several are right
    prediction        the name of the predicted class
    right_classes     the right classes' positions in the run's list of classes, spaces between them
    predicted_class   the predicted class's position in that list
    correct           1 if `predicted_class` is among `right_classes`, else 0
    log_p_right       natural logarithm of the probability of the right classes together
    max_p             probability of the predicted class
    sum_p2            sum of the squared probabilities of all classes that the set allows
    entropy           of these probabilities, in nats

Names are for reading and may occur twice in a list (ImageNet has two classes called "missile"); positions tell classes
apart, and are the same in every set of a run, also in those that have some of the classes only.
"""

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor

from robustft.common.files import atomic
from robustft.data.sets import EvaluationSet
from robustft.evaluation.evaluate import Evaluation
from robustft.evaluation.evaluator import PER_IMAGE, UNSEEN

FILE = "predictions.csv.gz"
LOGITS = "logits.safetensors"
COLUMNS = ("set", "image", "label", "prediction", "right_classes", "predicted_class", "correct", *PER_IMAGE)


def write_predictions(path: Path, evaluation: Evaluation, class_names: Sequence[str]) -> None:
    """Write the file, atomically; images that were not evaluated have no row.

    Args:
        class_names: in label order.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(COLUMNS)
    for evaluation_set in evaluation.sets:
        if (predictions := evaluation.predictions.get(evaluation_set.name)) is not None:
            rows.writerows(_rows(evaluation_set, predictions, evaluation.details[evaluation_set.name], class_names))
    with atomic(path) as partial:
        partial.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def read_logits(folder: Path) -> dict[str, Float[Tensor, "images classes"]]:
    """Read what a run with ``keep_logits=true`` leaves: all logits by set, in the order of the set.

    Rows of images that were not evaluated are −inf. The columns are the run's classes, those that a set does not allow
    included.

    Example:
        >>> logits = read_logits(Path("runs/one"))["scenes_v2"]  # doctest: +SKIP
    """
    return load_file(folder / LOGITS)


def _rows(
    evaluation_set: EvaluationSet,
    predictions: Int64[Tensor, " images"],
    details: Float[Tensor, "images 4"],
    class_names: Sequence[str],
) -> Iterator[tuple[Any, ...]]:
    right = [row.nonzero().flatten().tolist() for row in evaluation_set.correct]
    names = [" / ".join(class_names[k] for k in of_label) for of_label in right]
    places = [" ".join(map(str, of_label)) for of_label in right]
    labels = evaluation_set.dataset.labels.tolist()
    numbers = details.tolist()
    for image, label, guess, more in zip(evaluation_set.keys, labels, predictions.tolist(), numbers, strict=True):
        if guess != UNSEEN:
            correct = int(guess in right[label])
            shown = [f"{value:.9g}" for value in more]  # nine digits hold a float32 exactly
            yield evaluation_set.name, image, names[label], class_names[guess], places[label], guess, correct, *shown
