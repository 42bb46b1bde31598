"""ImageNet with its five natural distribution shifts, in the folder layouts in which they are distributed.

Every set is looked for under `data.root` by its usual names (`USUAL_NAMES`, the first one found is taken),
and `data.sets.<name>` gives one a path of its own (or `false`: leave it out).

| set             | folder                                        | holds                                  |
|-----------------|-----------------------------------------------|----------------------------------------|
| imagenet        | the one that has `train/` and `val/`          | `train/<wnid>/`, `val/<wnid>/`         |
| imagenet_v2     | matched frequency (Recht et al., ICML 2019)   | `0/` ... `999/`: the class index       |
| imagenet_r      | renditions (Hendrycks et al., ICCV 2021)      | 200 `<wnid>/`                          |
| imagenet_sketch | sketches (Wang et al., NeurIPS 2019)          | `<wnid>/`                              |
| objectnet       | the one that has `images/` and `mappings/`    | `images/<folder>/`; see `objectnet.py` |
| imagenet_a      | adversarial (Hendrycks et al., CVPR 2021)     | 200 `<wnid>/`                          |

Class folders must be exactly those of the set. They may hold fewer images than the published set (a subset
evaluates like the whole), except that training needs at least one image of every class.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from robustft.common.errors import UserError
from robustft.common.paths import expand
from robustft.common.wording import counted, some
from robustft.data.filedata import FileData
from robustft.data.folders import ImageFiles, ImageFolders, folder_set
from robustft.data.objectnet import BORDER, read_label_sets
from robustft.data.own import prompts
from robustft.data.sets import EvaluationSet, ImageSet

# In the order of the reports: the ID set, then the shifts.
USUAL_NAMES = {
    "imagenet": ("ILSVRC2012", "imagenet", "ImageNet", "imagenet-1k", "ILSVRC/Data/CLS-LOC", "."),
    "imagenet_v2": ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
    "imagenet_r": ("imagenet-r",),
    "imagenet_sketch": ("imagenet-sketch/sketch", "imagenet-sketch", "sketch"),
    "objectnet": ("objectnet-1.0", "objectnet"),
    "imagenet_a": ("imagenet-a",),
}

# Images in the sets as published (ObjectNet: those of its 113 classes that ImageNet has; ILSVRC2012's train).
OFFICIAL_IMAGES = {
    "imagenet_train": 1_281_167,
    "imagenet": 50_000,
    "imagenet_v2": 10_000,
    "imagenet_r": 30_000,
    "imagenet_sketch": 50_889,
    "objectnet": 18_574,
    "imagenet_a": 7_500,
}


@dataclass(frozen=True)
class ImageNetClasses:
    """The classes in the order of their WordNet ids, and the subsets that ImageNet-R and -A have."""

    wnids: Sequence[str]
    names: Sequence[str]
    imagenet_r: Sequence[str]
    imagenet_a: Sequence[str]


@cache
def official_classes() -> ImageNetClasses:
    """The 1000 classes; ids from timm, names (those that suit CLIP) from open_clip."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    def wnids(file: str) -> list[str]:
        return (files("timm.data") / "_info" / file).read_text().split()

    return ImageNetClasses(
        wnids=wnids("imagenet_synsets.txt"),
        names=IMAGENET_CLASSNAMES,
        imagenet_r=wnids("imagenet_r_synsets.txt"),
        imagenet_a=wnids("imagenet_a_synsets.txt"),
    )


class ImageNetData(FileData):
    """ImageNet for training, ImageNet and five shifts for evaluation.

    Args:
        sets: per set its own path, or False to leave it out; None (or absent): look under `root`.
        classes: other classes than the 1000 (tests).
        templates: of prompts, see `own.prompts.templates_of`; None: the 80 of OpenAI's ensemble.
        options: of all data of files, see `FileData`: `root`, the folder under which the sets are looked for, …
    """

    name = "imagenet"
    training_name = "imagenet_train"
    official_images = OFFICIAL_IMAGES

    def __init__(
        self,
        *,
        sets: Mapping[str, str | bool | None] | None = None,
        classes: ImageNetClasses | None = None,
        templates: str | Sequence[str] | None = None,
        **options,
    ) -> None:
        super().__init__(**options)
        self.classes = classes or official_classes()
        self.class_names = self.classes.names
        self.templates = prompts.templates_of(templates or "imagenet")
        self._told = {} if templates is None else {"templates": prompts.shown(self.templates)}
        self.paths = dict(sets or {})
        for name in self.paths.keys() - USUAL_NAMES.keys():
            near = difflib.get_close_matches(name, USUAL_NAMES, n=1, cutoff=0) or list(USUAL_NAMES)
            raise UserError(f"data.sets.{name}: no such set. Nearest: {near[0]}; all: {', '.join(USUAL_NAMES)}.")
        if self.paths.get("imagenet") is False:
            raise UserError("data.sets.imagenet=false: the ID set cannot be left out, only the shift sets can.")
        self.set_names = [name for name in USUAL_NAMES if self.paths.get(name) is not False]
        self._kept: dict[str, EvaluationSet] = {}

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **self._told}

    def training_set(self) -> ImageSet:
        return self.images(self.training_name)

    def evaluation_sets(self) -> list[EvaluationSet]:
        return [self.evaluation_set(name) for name in self.set_names]

    def evaluation_set(self, name: str) -> EvaluationSet:
        """The set of that name, scanned once.

        Raises:
            UserError: it is not there, or its folders are not those of its classes.
        """
        if name not in self._kept:
            self._kept[name] = self._scan(name)
        return self._kept[name]

    def files(self) -> dict[str, Callable[[], ImageFiles]]:
        evaluation = {name: partial(lambda n: self._files(n)[0], name) for name in self.set_names}
        return {self.training_name: self._training_files, **evaluation}

    def find(self, name: str) -> Path:
        """Where a set is.

        Raises:
            UserError: listing every path looked for, and what to do.
        """
        own = self.paths.get(name)
        if isinstance(own, str):
            candidates = [expand(own)]
        elif self.root is None:
            raise UserError(
                f"{name}: data.root is not set. Give the folder that holds the data sets (data.root=DIR) "
                f"or this one's own (data.sets.{name}=DIR)."
            )
        else:
            candidates = [expand(self.root) / usual for usual in USUAL_NAMES[name]]
        inside = {"imagenet": ("train", "val"), "objectnet": ("images",)}.get(name, ("",))
        for candidate in candidates:
            if any((candidate / sub).is_dir() for sub in inside):
                return candidate
        looked_for = ", ".join(str(candidate / sub) for candidate in candidates for sub in inside)
        leave_out = "" if name == "imagenet" else f", or leave the set out with data.sets.{name}=false"
        raise UserError(
            f"{name}: not found. Looked for {looked_for}. Give its folder with data.sets.{name}=DIR{leave_out}."
        )

    def _training_files(self) -> ImageFolders:
        folder = self._split_folder("train")
        images = ImageFolders(folder, self.classes.wnids, self.preprocess)
        counts = images.labels.bincount(minlength=len(self.classes.wnids))
        if len(empty := (counts == 0).nonzero().flatten().tolist()):
            raise UserError(
                f"{folder}: no training images of {len(empty):,} of {counted(len(counts), 'class', 'classes')}"
                f" ({some([self.classes.wnids[k] for k in empty])})."
            )
        return images

    def _split_folder(self, split: str) -> Path:
        folder = self.find("imagenet") / split
        if not folder.is_dir():
            way_out = " (evaluation alone does without: data.holdout=0)" if split == "train" else ""
            raise UserError(f"imagenet: {folder} is missing; expected train/ and val/ side by side{way_out}.")
        return folder

    def _scan(self, name: str) -> EvaluationSet:
        files, right = self._files(name)
        self._opened[name] = self._open(name, files)
        return folder_set(name, self._opened[name], right, self.num_classes)

    def _files(self, name: str) -> tuple[ImageFolders, list[list[int]]]:
        """The files of an evaluation set, and per folder the classes that are right for its images."""
        wnids, border = self.classes.wnids, 0
        ignored: list[str] = []
        folder = self._split_folder("val") if name == "imagenet" else self.find(name)
        if name == "imagenet_v2":  # the folder's NAME is the class; sorted as strings they would be permuted
            right = {str(k): [k] for k in range(len(wnids))}
        elif name in ("imagenet_r", "imagenet_a"):
            right = {wnid: [wnids.index(wnid)] for wnid in getattr(self.classes, name)}
        elif name == "objectnet":
            right, ignored = read_label_sets(folder / "mappings")
            folder, border = folder / "images", BORDER
        else:
            right = {wnid: [k] for k, wnid in enumerate(wnids)}
        images = ImageFolders(folder, list(right), self.preprocess, border=border, ignored=ignored)
        return images, list(right.values())
