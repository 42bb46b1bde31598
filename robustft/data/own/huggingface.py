"""`data=huggingface`: images of a data set of the Hugging Face hub, or of one saved on disk. Needs the extra."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from robustft.common.errors import UserError, install
from robustft.common.network import reachable
from robustft.common.paths import expand
from robustft.common.wording import on_one_line, some
from robustft.data.own.collection import VAL, Found, OwnImages
from robustft.data.own.listing import Listing
from robustft.data.own.reading import HOW, read_sent
from robustft.data.reading import reason
from robustft.data.sets import Preprocess, digest_of

HUB = "https://huggingface.co"


class ArrowImages(Dataset):
    """Images in rows of a Hugging Face data set.

    Args:
        rows: the row of each image.
        column: the one that holds images.
        name: of the split, for messages.
    """

    def __init__(
        self, table: Any, rows: Sequence[int], column: str, labels: Int64[Tensor, " images"],
        preprocess: Preprocess, name: str,
    ) -> None:  # fmt: skip
        self.table, self.rows, self.column, self.name = table, torch.tensor(rows), column, name
        self.labels, self.preprocess = labels, preprocess

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], int, int]:
        return self.preprocess.pixels(self.original(index)), int(self.labels[index]), index

    def original(self, index: int) -> Image.Image:
        """The image before the transform, as RGB and upright.

        Raises:
            UserError: with the split and the row, where it cannot be read.
        """
        try:
            return read_sent(self.content(index))
        except (UserError, OSError) as error:
            why = reason(error) if isinstance(error, OSError) else error
            raise UserError(f"{self.name}: cannot read the image in row {int(self.rows[index])}: {why}") from error

    def content(self, index: int) -> bytes:
        """The bytes of the file that was put into the row."""
        held = self.table[int(self.rows[index])][self.column]
        return held["bytes"] or Path(held["path"]).read_bytes()

    def key(self, index: int) -> str:
        return f"{self.name}/{int(self.rows[index])}"

    def identity(self, chosen: Int64[Tensor, " images"] | None = None) -> str:
        rows = self.rows if chosen is None else self.rows[chosen]
        made = f"{self.table._fingerprint}\0{self.column}\0{self.preprocess}\0{HOW}\0{PIL.__version__}"
        return hashlib.sha256((made + digest_of(rows)).encode()).hexdigest()


class HuggingFaceImages(OwnImages):
    """Images of a Hugging Face data set.

    Draws go by class and row.

    Args:
        path: its name on the hub (owner/name), or a folder that `save_to_disk` made or `load_dataset` takes.
        subset: its configuration, where it has several.
        splits: the splits to train on (`train`) and to report on (`val`; None: a share of the training images).
        image: the column with the images.
        label: the column with the classes.
        shifts: further splits, by the name of the shift.
        options: of all data of a user's own, see `OwnImages`.
    """

    name = "huggingface"

    def __init__(
        self,
        *,
        path: str,
        subset: str | None = None,
        splits: Mapping[str, str | None] | None = None,
        image: str = "image",
        label: str = "label",
        shifts: Mapping[str, str | None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.path, self.subset, self.image, self.label = path, subset, image, label
        self.chosen = {"train": "train", VAL: None} | dict(splits or {})
        self.shifts = dict(shifts or {})
        self._tables: dict[int, Any] = {}

    def look(self) -> Found:
        splits = self._load()
        wanted = {"data.splits.train": self.chosen["train"], "data.splits.val": self.chosen[VAL]}
        wanted |= {f"data.shifts.{name}": split for name, split in self.shifts.items()}
        found = {}
        for setting, split in wanted.items():
            if split is None:
                continue
            if split not in splits:
                near = difflib.get_close_matches(split, splits, n=1, cutoff=0.4)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise UserError(f"{setting}={split}: {self.path} has no such split.{hint} It has {', '.join(splits)}")
            found[setting] = self._listing(splits[split], split)
        shifts = {name: found[f"data.shifts.{name}"] for name, split in self.shifts.items() if split is not None}
        return Found(found["data.splits.train"], found.get("data.splits.val"), shifts)

    def prepare(self, training: bool = True) -> None:
        raise UserError("prepare=true makes copies of image files, and data=huggingface has its images in tables.")

    def images_of(self, listing: Listing, labels: Int64[Tensor, " images"]) -> ArrowImages:
        table = self._tables[id(listing.root)]
        return ArrowImages(
            table, [int(n) for n in listing.names], self.image, labels, self.preprocess, str(listing.root)
        )

    def _load(self) -> dict[str, Any]:
        try:
            import datasets
        except ImportError as error:
            raise UserError(f"data=huggingface needs Hugging Face's datasets: {install('huggingface')}") from error
        folder = expand(self.path)
        if not folder.is_dir() and not reachable(HUB):
            raise UserError(
                f"data.path={self.path}: there is no such folder, and {HUB} does not answer. Expected a data set of the"
                " hub as owner/name, or a folder that save_to_disk made"
            )
        try:
            if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
                loaded: Any = datasets.load_from_disk(str(folder))
            else:
                loaded = datasets.load_dataset(str(folder) if folder.is_dir() else self.path, self.subset)
        except Exception as error:  # of the hub, of its client and of tables there are dozens
            why = on_one_line(error, 300)
            raise UserError(
                f"data.path={self.path}: cannot be loaded ({why}). Expected a data set of the hub as owner/name, or a"
                " folder that save_to_disk made"
            ) from error
        return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}

    def _listing(self, table: Any, split: str) -> Listing:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        if not len(table):
            raise UserError(f"{self.path}: the split {split} has no rows")
        for setting, column in (("image", self.image), ("label", self.label)):
            if column not in table.column_names:
                raise UserError(
                    f"{self.path}: no column {column!r} in {split}. It has {some(table.column_names, 8)}; name it:"
                    f" data.{setting}=COLUMN"
                )
        if not isinstance(table.features[self.image], ImageFeature):
            raise UserError(
                f"{self.path}: the column {self.image!r} holds no images. Name the one that does: data.image="
            )
        feature, values = table.features[self.label], table[self.label]
        if isinstance(feature, ClassLabel):
            if any(value is None or value < 0 for value in values):
                raise UserError(f"{self.path}: {split} has images without a label (a split kept secret?)")
            classes = [feature.names[value] for value in values]
        elif all(isinstance(value, str | int) for value in values):
            classes = [str(value) for value in values]
        else:
            raise UserError(
                f"{self.path}: the column {self.label!r} holds no classes: {json.dumps(values[0], default=str)}"
            )
        rows = [f"{row:012d}" for row in range(len(classes))]
        place = Path(split)
        self._tables[id(place)] = table.cast_column(self.image, ImageFeature(decode=False))
        return Listing(place, rows, classes, rows).ordered()
