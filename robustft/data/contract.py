"""What a data class has to give, checked: a class of one's own gets a clear line for each mistake."""

from typing import Any

import torch

from robustft.common.errors import UserError
from robustft.common.wording import counted
from robustft.data.sets import EvaluationSet, ImageSet

RESERVED = ("holdout", "avg", "average", "ood_avg")


def check_data(data: Any) -> None:
    """Refuse what a data class gives where it is not what `RobustnessData` asks for.

    Raises:
        UserError: names the class, what was found, and what was expected.
    """
    who = type(data).__name__
    for attribute in ("name", "class_names", "templates"):
        if not getattr(data, attribute, None):
            raise UserError(f"{who} has no `{attribute}`: see robustft/data/datamodule.py for what a data class gives")
    classes = len(data.class_names)
    sets: Any = data.evaluation_sets()
    names = [getattr(one, "name", "?") for one in sets]
    if len(set(names)) != len(names):
        raise UserError(f"{who}: two evaluation sets have one name ({', '.join(names)}): results go by it")
    for one in sets:
        if not isinstance(one, EvaluationSet):
            raise UserError(f"{who}.evaluation_sets() gives a {type(one).__name__}, expected EvaluationSet")
        if one.name in RESERVED or not one.name or one.name[0] == "." or {*one.name} & {*"/\\\n\r\0"}:
            raise UserError(
                f"{who}: an evaluation set cannot be called {one.name!r}: that name has a meaning in results"
                f" ({', '.join(RESERVED)} do), or makes no file name"
            )
        _check_images(one.dataset, f"{who}: {one.name}", len(one.correct))
        if one.correct.shape[1] != classes:
            raise UserError(
                f"{who}: {one.name}.correct has {one.correct.shape[1]} columns, expected one for each of the {classes}"
                " classes"
            )
        if len(one.keys) != len(one.dataset):
            raise UserError(
                f"{who}: {one.name} has {counted(len(one.dataset), 'image')} and {counted(len(one.keys), 'key')}"
            )
    if data.holdout != 0:
        _check_images(data.training_set(), f"{who}: the training set", classes)


def _check_images(images: Any, what: str, labels: int) -> None:
    if not isinstance(images, ImageSet):
        lacks = [name for name in ("labels", "__len__", "__getitem__", "key", "identity") if not hasattr(images, name)]
        raise UserError(f"{what} is a {type(images).__name__} without {', '.join(lacks)}: see ImageSet in"
                        " robustft/data/sets.py")  # fmt: skip
    if not isinstance(images.labels, torch.Tensor) or images.labels.dtype != torch.int64:
        raise UserError(f"{what}: labels are no tensor of whole numbers (int64)")
    if len(images.labels) != len(images) or not len(images):
        raise UserError(
            f"{what} has {counted(len(images), 'image')} and {counted(len(images.labels), 'label')}: expected as"
            " many, and some"
        )
    if int(images.labels.min()) < 0 or int(images.labels.max()) >= labels:
        raise UserError(
            f"{what} has labels from {int(images.labels.min())} to {int(images.labels.max())}, expected 0 to"
            f" {labels - 1}"
        )
