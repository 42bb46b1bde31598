"""`data=folders`: a folder of class folders to train on, and others like it to evaluate on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustft.common.errors import UserError
from robustft.common.paths import located
from robustft.data.own.collection import Found, OwnImages
from robustft.data.own.listing import scan


class FolderImages(OwnImages):
    """Images in class folders; the label of an image is the first folder of its path, whatever lies deeper.

    Args:
        root: what the other places are relative to; None: the working directory.
        train: the folder with the training images' class folders.
        val: the same for the ID set; None: a share of the training images.
        shifts: the same for each shift set, by its name.
        options: of all data of a user's own, see `OwnImages`.
    """

    name = "folders"

    def __init__(
        self,
        *,
        train: str,
        root: str | None = None,
        val: str | None = None,
        shifts: Mapping[str, str | None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root=root, **options)
        self.train, self.val = train, val
        self.shifts = dict(shifts or {})

    def look(self) -> Found:
        return Found(
            scan(self._folder("data.train", self.train), "data.train"),
            None if self.val is None else scan(self._folder("data.val", self.val), "data.val"),
            {
                name: scan(self._folder(f"data.shifts.{name}", place), f"data.shifts.{name}")
                for name, place in self.shifts.items()
                if place is not None
            },
        )

    def _folder(self, setting: str, place: Any) -> Path:
        if not isinstance(place, str):
            raise UserError(f"{setting}={place}: expected a folder with class folders in it; names hold no dots")
        folder = located(place, self.root)
        if not folder.is_dir():
            raise UserError(f"{setting}={place}: no such folder. Expected one with a folder for each class")
        return folder
