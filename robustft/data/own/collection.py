"""What all kinds of a user's own images have in common: classes, prompts, the draws, rules for small sets."""

import difflib
import logging
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from robustft.common.errors import UserError
from robustft.common.paths import expand
from robustft.common.wording import counted, noun, short, some
from robustft.data.contract import RESERVED
from robustft.data.datamodule import DEFAULT_HOLDOUT
from robustft.data.filedata import FileData
from robustft.data.folders import ImageFiles, keys_of
from robustft.data.own import names, prompts
from robustft.data.own.corruptions import Corrupted
from robustft.data.own.corruptions import chosen as chosen_corruptions
from robustft.data.own.listing import Listing, at_most_each, drawn, shared
from robustft.data.own.reading import HOW, read_upright, why_unreadable
from robustft.data.sampling import balanced, shuffled
from robustft.data.sets import EvaluationSet, ImageSet, Selection

log = logging.getLogger(__name__)

VAL = "val"  # the ID set
FILE_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]{1,100}")  # a table, or somebody's data set, may say something else
HOLDOUT_SHARE, VAL_SHARE = 0.1, 0.2
FEWEST_STEPS, MOST_EPOCHS = 500, 5  # of a training, and times the recipe's; see `settle`
FEWEST_STEPS_AN_EPOCH, SMALLEST_BATCH = 8, 8


@dataclass(frozen=True)
class Found:
    """What a user has.

    Attributes:
        train: to train on; the ID set is drawn from it where there is none of its own.
        val: the ID set.
        shifts: by name, in the order of the reports.
        selects_on_val: the images drawn from `train` are both hold-out and ID set.
    """

    train: Listing
    val: Listing | None = None
    shifts: Mapping[str, Listing] = field(default_factory=dict)
    selects_on_val: bool = False


class OwnImages(FileData):
    """Images of a user's own.

    Args:
        class_names: a JSON or CSV file with the classes' names; None: made from what they are called on disk.
        templates: of prompts, see `prompts.templates_of`.
        candidates: which classes can be predicted on a set: `all`, or those `present` in it.
        unknown: what a set's images of other classes than the training images' get: `refuse`, or `skip` (leave out).
        shots: train on at most so many images of each class (a draw by the run's seed), hold-out included.
        sampler: the order of an epoch: `shuffle`, or `balanced` or `domains`, in which these take turns.
        val_share: share of the training images that makes the ID set where there is none of its own.
        val_seed: of that draw: the same images whatever the run's seed.
        corruptions: what stands in for shifts: the ID set under all of `corruptions.KINDS` (True), or those listed.
        severity: of the corruptions, 1 (weak) to 5.
        options: of all data of files, see `FileData`. The hold-out is by default 10% of what is left, at most 10,240.

    Raises:
        UserError: a setting out of range; when images are looked for: what is missing or wrong.
    """

    decoding_error = staticmethod(why_unreadable)

    def __init__(
        self,
        *,
        class_names: str | None = None,
        templates: str | Sequence[str] = "imagenet",
        candidates: str = "all",
        unknown: str = "refuse",
        shots: int | None = None,
        sampler: str = "shuffle",
        val_share: float = VAL_SHARE,
        val_seed: int = 0,
        corruptions: bool | Sequence[str] = False,
        severity: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.corruptions, self.severity = chosen_corruptions(corruptions), severity
        self.names_file, self.candidates, self.unknown = class_names, candidates, unknown
        self.shots, self.sampler, self.val_share, self.val_seed = shots, sampler, val_share, val_seed
        self._templates = prompts.templates_of(templates)
        self._named = None if class_names is None else names.read_names(expand(class_names))
        self._kept: dict[str, EvaluationSet] = {}
        self.settled: dict[str, int] = {}  # what `settle` has chosen, by the names of settings
        self._known: dict[str, Listing] = {}  # by set: the images of known classes

    @property
    def place(self) -> Path | None:
        """The folder of the prepared copies: the one that is given, since others of the user's lie under the root."""
        return expand(self.prepared) if isinstance(self.prepared, str) else None

    # What a kind gives

    @abstractmethod
    def look(self) -> Found:
        """Find the images.

        Raises:
            UserError: what is missing or wrong.
        """

    def images_of(self, listing: Listing, labels: Int64[Tensor, " images"]) -> Any:
        """The images of a listing."""
        return ImageFiles(
            *(listing.root, listing.names, labels, self.preprocess), read=read_upright, how=HOW, stamps=listing.stamps
        )

    # Classes and what is said of them

    @cached_property
    def found(self) -> Found:
        found = self.look()
        for name in found.shifts:
            if name in (*RESERVED, VAL, "train", "id"):
                raise UserError(
                    f"a shift cannot be called {name!r}: that has a meaning in results. Choose another name"
                )
            if not FILE_NAME.fullmatch(name):
                raise UserError(
                    f"a shift cannot be called {short(repr(name), 60)}: files go by its name. Give it one without"
                    " slashes and line ends, and of at most 100 characters"
                )
        self._refuse_idle(found)
        return found

    def _refuse_idle(self, found: Found) -> None:
        """Raises a UserError where a setting means nothing with what was found."""
        for name, value, usual in (("val_share", self.val_share, VAL_SHARE), ("val_seed", self.val_seed, 0)):
            if found.val is not None and value != usual:
                raise UserError(f"data.{name}={value}: the ID set has images of its own. Leave it out")

    @cached_property
    def classes(self) -> list[str]:
        """The classes as they are called on disk, sorted: those of the training images."""
        classes = sorted(set(self.found.train.classes))
        if len(classes) < 2:
            raise UserError(f"the training images are of one class alone ({classes[0]}): expected two or more")
        return classes

    @cached_property
    def names(self) -> list[list[str]]:
        return names.names_of(self.classes, self._named)

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        return [first for first, *_ in self.names]

    @cached_property
    def templates(self) -> list[prompts.Template]:  # type: ignore[override]
        return prompts.with_synonyms(self._templates, self.names)

    def protocol(self) -> dict[str, Any]:
        """What results have to say of how they came about."""
        drawn_val = self.found.val is None
        split = f"{self.val_share:.0%} of each class by val_seed={self.val_seed}" if drawn_val else "sets of their own"
        split += ", hold-out = ID set" if self.found.selects_on_val else ""
        split += f", corruptions of severity {self.severity} as shifts" if self.corruptions else ""
        return {
            "templates": prompts.shown(self._templates),
            "class_names": dict(zip(self.classes, self.names, strict=True)),
            "candidates": self.candidates,
            "split": split,
            "settled": self.settled or None,
        }

    # Sets

    def files(self) -> Mapping[str, Callable[[], Any]]:
        sets = {self.training_name: self.found.train}
        sets |= {} if self.found.val is None else {VAL: self.found.val}
        sets |= self.found.shifts
        return {name: partial(self._files_of, name, listing) for name, listing in sets.items()}

    def parts(self) -> dict[str, Callable[[], ImageSet]]:
        sets = {name: partial(self._dataset, name) for name in (VAL, *self.found.shifts)}
        return {self.training_name: self.training_set, **sets}

    def training_set(self) -> ImageSet:
        return self._training_set

    def evaluation_sets(self) -> list[EvaluationSet]:
        of_files = [self.evaluation_set(name) for name in (VAL, *self.found.shifts)]
        return of_files + [
            replace(of_files[0], name=f"corrupted_{kind}", dataset=Corrupted(of_files[0].dataset, kind, self.severity))
            for kind in self.corruptions
        ]

    def evaluation_set(self, name: str) -> EvaluationSet:
        if name not in self._kept:
            images = self._dataset(name)
            correct = torch.eye(self.num_classes, dtype=torch.bool)
            if self.candidates == "present":
                present = torch.zeros(self.num_classes, dtype=torch.bool)
                present[images.labels] = True
                correct &= present[:, None]
            self._kept[name] = EvaluationSet(name, images, correct, keys_of(images), groups=self._groups_of(name))
        return self._kept[name]

    def _groups_of(self, name: str, among: Int64[Tensor, " images"] | None = None) -> Int64[Tensor, " images"] | None:
        """The number of each image's group in a set (`among`: of these); the same number in all sets."""
        drawn_val = name == VAL and self.found.val is None
        listing = self._known[self.training_name if drawn_val else name]
        if drawn_val:
            among = self._is_val.nonzero().flatten()
        if not listing.groups:
            return None
        sets = (self.found.train, self.found.val, *self.found.shifts.values())
        number = {group: k for k, group in enumerate(sorted({g for one in sets if one for g in one.groups}))}
        numbers = torch.tensor([number[group] for group in listing.groups])
        return numbers if among is None else numbers[among]

    def _holdout_set(self) -> EvaluationSet:
        held = self._positions[self.split[1]]
        return replace(super()._holdout_set(), groups=self._groups_of(self.training_name, held))

    def _dataset(self, name: str) -> ImageSet:
        if name == VAL and self.found.val is None:
            return Selection(self.images(self.training_name), self._is_val.nonzero().flatten())
        return self.images(name)

    def _files_of(self, name: str, listing: Listing) -> Any:
        self._known[name] = known = self._of_known_classes(name, listing)
        return self.images_of(known, self._labels if known is self.found.train else known.labels(self.classes))

    def _of_known_classes(self, name: str, listing: Listing) -> Listing:
        unknown = sorted(set(listing.classes).difference(self.classes))
        if unknown and self.unknown == "refuse":
            near = [difflib.get_close_matches(one, self.classes, n=1, cutoff=0.5) for one in unknown[:3]]
            hints = [f"{one} ({match[0]}?)" if match else one for one, match in zip(unknown, near, strict=False)]
            raise UserError(
                f"{name}: {counted(len(unknown), 'class', 'classes')} unknown to the training images:"
                f" {', '.join(hints)}{', …' if len(unknown) > 3 else ''}. Rename them, or leave their images out:"
                " data.unknown=skip"
            )
        those = set(self.classes)
        known = [i for i, one in enumerate(listing.classes) if one in those] if unknown else None
        kept = listing if known is None else listing.select(known)
        if not len(kept):
            raise UserError(f"{name}: none of its classes ({some(unknown)}) is one of the training images'")
        if unknown:
            left_out = counted(len(listing) - len(kept), "image")
            log.info("%s: left out %s of %s", name, left_out, counted(len(unknown), "unknown class", "unknown classes"))
        absent = len(self.classes) - len(set(kept.classes))
        if absent:
            log.info("%s: has %d of the %d classes", name, len(self.classes) - absent, len(self.classes))
        return kept

    # Draws

    @cached_property
    def _keys(self) -> list[str]:
        return self.found.train.keys()

    @cached_property
    def _labels(self) -> Int64[Tensor, " images"]:
        return self.found.train.labels(self.classes)

    def _keys_of(self, positions: Int64[Tensor, " images"]) -> list[str]:
        keys = self._keys
        return [keys[i] for i in positions.tolist()]

    @cached_property
    def _is_val(self) -> Any:
        """Of the training images as they were found: those that make the ID set."""
        pool = self.found.train
        if self.found.val is not None:
            return torch.zeros(len(pool), dtype=torch.bool)
        chosen = drawn("val", self._labels, self._keys, round(self.val_share * len(pool)), self.val_seed)
        if not chosen.any():
            raise UserError(
                f"no image can be set aside for the ID set: the {counted(len(self.classes), 'class', 'classes')} have"
                f" {counted(len(pool), 'image')} in all, and one of each stays in training. Give more images, or"
                " data.val=DIR"
            )
        return chosen

    @cached_property
    def _positions(self) -> Int64[Tensor, " images"]:
        """Of the training images as they were found: those that are trained on, hold-out included."""
        pool = self.found.train
        kept = torch.ones(len(pool), dtype=torch.bool) if self.found.selects_on_val else ~self._is_val
        if self.shots is not None:
            of_training = (~self._is_val).nonzero().flatten()
            few = at_most_each(self._labels[of_training], self._keys_of(of_training), self.shots, self.seed)
            kept[of_training[~few]] = False
        return kept.nonzero().flatten()

    @cached_property
    def _training_set(self) -> ImageSet:
        images = self.images(self.training_name)
        return images if len(self._positions) == len(images) else Selection(images, self._positions)

    @cached_property
    def split(self) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " holdout"]]:  # type: ignore[override]
        labels = self._labels[self._positions]
        if self.found.selects_on_val:
            held = self._is_val[self._positions]
        else:
            size = self._holdout_size(labels)
            held = drawn("hold-out", labels, self._keys_of(self._positions), size, self.holdout_seed)
        self.__dict__.pop("_keys", None)  # a million strings, and nothing is drawn any more
        return (~held).nonzero().flatten(), held.nonzero().flatten()

    def _holdout_size(self, labels: Int64[Tensor, " images"]) -> int:
        most = len(labels) - len(labels.unique())
        if self.holdout is None:
            return min(DEFAULT_HOLDOUT, most, max(1, round(HOLDOUT_SHARE * len(labels))))
        if self.holdout > most:
            raise UserError(
                f"data.holdout={self.holdout}: of {counted(len(labels), 'image')} at most {most} can be held out,"
                " since one of each class stays in training"
            )
        return self.holdout

    def setup(self, stage: str | None = None) -> None:
        if not self.sets and self.holdout is None and not len(self.split[1]):
            log.info("no hold-out: no class has an image to spare. The last weights are taken")
            self.holdout = 0
        if self.found.selects_on_val and self.holdout not in (None, 0):
            raise UserError(
                "data.holdout: with data.target the hold-out is what is drawn from the sources. Leave it out"
            )
        super().setup(stage)

    def training_order(self, positions: Int64[Tensor, " images"], random: torch.Generator) -> Int64[Tensor, " images"]:
        if self.sampler == "shuffle":
            return shuffled(positions, random)
        return positions[balanced(self._groups[positions], random)]

    @cached_property
    def _groups(self) -> Int64[Tensor, " images"]:
        """What takes turns in an epoch, for each training image."""
        if self.sampler == "balanced":
            return self.training_set().labels
        domains = self.found.train.domains
        if not domains:
            raise UserError("data.sampler=domains: the training images are of one domain alone")
        number = {name: k for k, name in enumerate(sorted(set(domains)))}
        return torch.tensor([number[name] for name in domains])[self._positions]

    # Rules

    def verify(self, training: bool = True) -> None:
        if training:
            self._refuse_shared()
        super().verify(training)
        if training and self.sampler != "shuffle":
            _ = self._groups
        counts = {s.name: len(s.dataset) for s in self.sets}
        train = f"train {self.train_images:,}, " if training else ""
        listed = ", ".join(f"{name} {images:,}" for name, images in counts.items())
        log.info("images: %s%s; %d classes", train, listed, self.num_classes)
        if self.corruptions:
            log.info(
                "no natural shifts: corrupted_… are the ID set under corruptions of severity %d of 5", self.severity
            )

    def _refuse_shared(self) -> None:
        """Raises a UserError where a set to report on has images that are trained on."""
        for name, listing in {VAL: self.found.val, **self.found.shifts}.items():
            if listing is not None and (both := shared(self.found.train, listing)):
                raise UserError(
                    f"{name}: {len(both):,} of its {counted(len(listing), 'image')} {noun(len(both), 'is', 'are')}"
                    f" trained on too ({some(both)}). What is reported has to be new to the model: give it other images"
                )

    def check_batch_size(self, least: int = 1) -> None:
        """`settle` comes later where the batch is the recipe's; then it is checked again."""
        if self._settled or self.batch_size <= self.train_images:
            super().check_batch_size(least)

    _settled = False

    def settle(self, recipe: Mapping[str, int]) -> dict[str, int]:
        """Smaller batches and more epochs for small sets.

        The batch is the recipe's, or the largest power of two (8 at least) with which an epoch has 8 steps. The epochs
        are the recipe's, or as many more as make 500 steps, up to five times as many.
        """
        self._settled = True
        settled: dict[str, int] = {}
        batch = self.batch_size
        if "batch_size" in recipe:
            fitting = 2 ** max(0, (self.train_images // FEWEST_STEPS_AN_EPOCH).bit_length() - 1)
            batch = min(recipe["batch_size"], max(SMALLEST_BATCH, fitting), max(1, self.train_images))
            settled |= {"batch_size": batch} if batch != recipe["batch_size"] else {}
        if "max_epochs" in recipe and batch <= self.train_images:
            needed = -(-FEWEST_STEPS // (self.train_images // batch))
            epochs = min(max(recipe["max_epochs"], needed), MOST_EPOCHS * recipe["max_epochs"])
            settled |= {"max_epochs": epochs} if epochs != recipe["max_epochs"] else {}
        if settled:
            names_of = {"batch_size": "data.batch_size", "max_epochs": "trainer.max_epochs"}
            self.settled = {names_of[key]: value for key, value in settled.items()}
            log.info(
                "small set: %s (%s to train on; what is typed wins)",
                " ".join(f"{name}={value}" for name, value in self.settled.items()),
                counted(self.train_images, "image"),
            )
        return settled
