"""`retain.<name>`: another task of the user's own, on which a run is asked what it still knows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from robustft.common.errors import UserError
from robustft.common.paths import expand
from robustft.common.wording import some
from robustft.data.datamodule import RobustnessData
from robustft.data.folders import ImageFiles, image_paths, keys_of
from robustft.data.own import names, prompts
from robustft.data.own.listing import Listing, scan
from robustft.data.own.reading import HOW, read_upright, why_unreadable
from robustft.data.own.table import UNGROUPED, listing_of, read_table, records_of
from robustft.data.own.torchvision_sets import torchvision_set
from robustft.data.reading import damaged_files
from robustft.data.sets import EvaluationSet, ImageSet, Preprocess, RetentionTask

DEFAULTS = {
    "path": None,
    "kind": "folders",
    "split": None,
    "class_names": None,
    "templates": "imagenet",
    "images": None,
}


def tasks_of(typed: Mapping[str, Mapping[str, Any]], data: RobustnessData) -> list[RetentionTask]:
    """The tasks of a run: those that come with its data, then those that are typed; `data.eval_images` cuts them too.

    Args:
        typed: options by name, see `make_task`; with the path False the data's task of that name is left out.

    Raises:
        UserError: one is missing or wrong.
    """
    tasks = {task.name: task for task in data.retention_tasks()}
    for name, options in typed.items():
        if options.get("path") is not False:
            tasks[name] = make_task(name, options, data.preprocess)
        elif tasks.pop(name, None) is None:
            brought = f"it brings {', '.join(tasks)}" if tasks else "it brings none"
            raise UserError(f"retain.{name}=false: no task of that name comes with data={data.name}: {brought}")
    for name, task in tasks.items():
        _check(name, task)
    return [task.at_most(data.eval_images) for task in tasks.values()]


def _check(name: str, task: RetentionTask) -> None:
    """Refuse what a data class of one's own may get wrong."""
    right = task.images.correct
    if right.shape[1] != len(task.class_names) or len(right) <= int(task.images.dataset.labels.max()):
        raise UserError(
            f"retention_tasks(): {name} has labels up to {int(task.images.dataset.labels.max())} and"
            f" {len(task.class_names)} class names, and `correct` is {tuple(right.shape)}: expected (labels, classes)"
        )


def make_task(name: str, options: Mapping[str, Any], preprocess: Preprocess) -> RetentionTask:
    """A task as it is typed.

    Args:
        options: of DEFAULTS: path; kind (folders, table, torchvision); split: a folder below the path, a value of the
            table's column, or torchvision's; class_names and templates, as data= takes them; images: at most so many.
        preprocess: the model's transform.

    Raises:
        UserError: what is missing or wrong, an unreadable image with its path.
    """
    given = DEFAULTS | dict(options)
    setting, path, split = f"retain.{name}", expand(given["path"]), given["split"]
    match given["kind"]:
        case "table":
            images, classes = _of_table(setting, path, split, preprocess)
        case "torchvision":
            images, classes = torchvision_set(name, path, split, preprocess)
        case _:
            images, classes = _of_folders(setting, path if split is None else path / split, preprocess)
    file = given["class_names"]
    known = None if file is None else names.read_names(expand(file), f"{setting}.class_names")
    called = names.names_of(classes, known, f"{setting}.class_names")
    _refuse_damaged(images)
    task = RetentionTask(
        EvaluationSet(name, images, torch.eye(len(classes), dtype=torch.bool), keys_of(images)),
        [first for first, *_ in called],
        prompts.with_synonyms(prompts.templates_of(given["templates"], f"{setting}.templates"), called),
    )
    return task.at_most(given["images"])


def _of_folders(setting: str, folder: Path, preprocess: Preprocess) -> tuple[ImageSet, Sequence[str]]:
    if not folder.is_dir():
        raise UserError(f"{setting}={folder}: no such folder. Expected one with a folder for each class")
    return _files(setting, scan(folder, setting), preprocess)


def _of_table(setting: str, table: Path, split: str | None, preprocess: Preprocess) -> tuple[ImageSet, Sequence[str]]:
    header, rows = read_table(table, f"{setting}.path")
    if lacks := [column for column in ("path", "label", *(["split"] if split else [])) if column not in header]:
        raise UserError(f"{table}: no column {lacks[0]!r}. It has {some(header, 8)}")
    records = records_of(table, rows, table.parent, UNGROUPED)
    chosen = [record[1:] for record in records if split in (None, record[0])]
    if not chosen:
        raise UserError(f"{setting}.split={split}: {table} has {some(sorted({record[0] for record in records}), 8)}")
    return _files(setting, listing_of(table.parent, chosen), preprocess)


def _files(setting: str, listing: Listing, preprocess: Preprocess) -> tuple[ImageSet, Sequence[str]]:
    classes = sorted(set(listing.classes))
    if len(classes) < 2:
        raise UserError(f"{setting}: its images are of one class alone ({classes[0]}): expected two or more")
    labels: Int64[Tensor, " images"] = listing.labels(classes)
    return ImageFiles(listing.root, listing.names, labels, preprocess, read=read_upright, how=HOW), classes


def _refuse_damaged(images: ImageSet) -> None:
    """Tasks are evaluated after training: better to know now that an image of one will not open."""
    damaged = damaged_files(image_paths(images), thorough=False, title="Looking at the images", decode=why_unreadable)
    for path, reason in damaged.items():
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise UserError(f"Cannot read the image {path}: {reason}{more}. Fetch it again or remove it")
