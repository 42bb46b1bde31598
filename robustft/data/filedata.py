"""What every family of data whose images are files has in common: prepared copies, damaged files, loader processes."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import torch
from jaxtyping import Int64
from torch import Tensor

from robustft.common import processes
from robustft.common.cache import cache_folder, digest, optional
from robustft.common.errors import UserError
from robustft.common.files import write
from robustft.common.paths import expand
from robustft.data.datamodule import RobustnessData
from robustft.data.folders import ImageFiles, files_of
from robustft.data.loading import file_workers
from robustft.data.prepared import PreparedImages, open_copy
from robustft.data.reading import damaged_files, decoding_error
from robustft.data.sets import EvaluationSet, ImageSet

log = logging.getLogger(__name__)


class FileData(RobustnessData):
    """Data of image files. Subclasses say where they are (`files`), and get copies, checks and identities with it.

    Args:
        root: the folder that holds the data; None: each set has a place of its own.
        prepared: the folder of prepared copies (`prepared.py`); None: `prepared/` under `root`; False: use none.
        lossy: train on the smaller, lossy prepared copy, which must be there.
        options: of every data module, see `RobustnessData`.
    """

    decoding_error = staticmethod(decoding_error)  # says what is wrong with an image file, by decoding it
    training_name = "train"  # of the training images: in messages, and in the names of prepared copies

    def __init__(
        self, *, root: str | None = None, prepared: str | bool | None = None, lossy: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root, self.prepared, self.lossy = root, prepared, lossy
        self._opened: dict[str, ImageSet] = {}

    # What a family of files gives

    @abstractmethod
    def files(self) -> Mapping[str, Callable[[], ImageSet]]:
        """What finds the image files of each set, by the set's name, `training_name` first.

        Raises (what is called): UserError, where something is missing or wrong.
        """

    @abstractmethod
    def evaluation_set(self, name: str) -> EvaluationSet:
        """The evaluation set of that name, scanned once."""

    # What all of them have in common

    def default_workers(self) -> int:
        return file_workers(torch.accelerator.is_available())

    def images(self, name: str) -> ImageSet:
        """The images of a set: its prepared copy where there is one, else its files. Opened once."""
        if name not in self._opened:
            self._opened[name] = self._open(name, self.files()[name]())
        return self._opened[name]

    def parts(self) -> dict[str, Callable[[], ImageSet]]:
        """What to look at, one by one, when a data root is checked."""
        return {self.training_name: self.training_set} | {
            name: partial(lambda n: self.evaluation_set(n).dataset, name)
            for name in self.files()
            if name != self.training_name
        }

    def verify(self, training: bool = True) -> None:
        """Everything found, all classes there, no file truncated; names all that is wrong at once."""
        self._find_all(training, self.parts())
        super().verify(training)
        copies = [name for name, images in self._opened.items() if isinstance(images, PreparedImages)]
        if copies:
            log.info("prepared copies of %s in %s", ", ".join(copies), self.place)
            if training and self.augments and self.training_name in copies:
                log.info("augment reads the training images from their files: a copy is cropped already")
        if processes.is_first_process():
            self._refuse_damaged_files(training)

    def prepare(self, training: bool = True) -> None:
        """Make prepared copies of the sets, or bring them up to date.

        Raises:
            UserError: a set is missing or wrong, an image cannot be read, or there is no place for the copies.
        """
        from robustft.data.prepare import prepare

        found = self._find_all(training, self.files())
        if self.place is None:
            raise UserError("prepare=true: no folder for the copies. Give data.prepared=DIR, or data.root=DIR.")
        prepare(found, self.place, [self.training_name] if self.lossy else [])

    @property
    def place(self) -> Path | None:
        """The folder of the prepared copies."""
        if self.prepared is False or (self.prepared is None and self.root is None):
            return None
        return expand(str(self.prepared or f"{self.root}/prepared"))

    def _open(self, name: str, files: ImageSet) -> ImageSet:
        if not isinstance(files, ImageFiles):  # images in tables: there is no copy of them
            return files
        lossy = self.lossy and name == self.training_name
        if self.place is not None:
            return open_copy(name, files, self.place, lossy)
        if lossy:
            raise UserError("data.lossy=true reads a prepared copy: it does not go with data.prepared=false.")
        return files

    def _find_all(self, training: bool, parts: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """What these parts give, less the training images where nothing needs them.

        Raises:
            UserError: naming all that is missing or wrong.
        """
        found, problems = {}, []
        for name, find in parts.items():
            if name == self.training_name and not training and self.holdout == 0:
                continue
            try:
                found[name] = find()
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(dict.fromkeys(problems)))
        return found

    def _refuse_damaged_files(self, training: bool) -> None:
        """Evaluation comes after training: better to know now that an image of it will not open. A prepared copy was
        made of the same files, and its images carry checksums.

        Sets whose files were all good are remembered by their files' names, sizes and times, and not read again.
        """
        sets = [self.training_set()] if training else []
        parts = [files_of(images) for images in (*sets, *(one.dataset for one in self.sets))]
        unknown = {self._record(*part): part for part in parts if part is not None}
        unknown = {record: part for record, part in unknown.items() if not record.exists()}
        paths = dict.fromkeys(files.path(i) for files, positions in unknown.values() for i in positions.tolist())
        damaged = damaged_files(
            list(paths), thorough=False, title="Looking at the image files", decode=self.decoding_error
        )
        if damaged:
            path, reason = next(iter(damaged.items()))
            more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
            raise UserError(
                f"Cannot read the image {path}: {reason}{more}. Fetch damaged files again or remove them; "
                "check=data lists them all."
            )
        for record in unknown:
            with optional(record.parent):
                write(record, "")

    def _record(self, files: ImageFiles, positions: Int64[Tensor, " images"]) -> Path:
        """What is there once all of these files were good, for this version of the reader."""
        judge = f"{self.decoding_error.__module__} Pillow {PIL.__version__}"
        return cache_folder() / "intact" / digest(judge, files.files(positions.numpy()))
