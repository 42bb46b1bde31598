"""Data sets of Hugging Face's library, saved on this disk: the same images as in folders give the same pixels."""

import json
from pathlib import Path

import pytest
import torch

from robustft.common.errors import UserError
from robustft.data.check_page import write_page
from robustft.data.inspection import inspect
from robustft.data.own.folders import FolderImages
from robustft.data.own.huggingface import HuggingFaceImages
from tests.data.own import OPTIONS, write_domains

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two domains in folders, and the same as splits of a data set that `save_to_disk` left."""
    root = write_domains(tmp_path_factory.mktemp("images"), domains=("photo", "sketch"))
    classes = sorted(path.name for path in (root / "photo").iterdir())
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=classes)})
    splits = {}
    for split, domain in (("train", "photo"), ("drawn", "sketch")):
        files = sorted((root / domain).glob("*/*.png"))
        rows = {"picture": [str(file) for file in files], "kind": [file.parent.name for file in files]}
        splits[split] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(splits).save_to_disk(str(root / "saved"))
    return root


def saved(root: Path, **options: object) -> HuggingFaceImages:
    chosen = {"path": str(root / "saved"), "image": "picture", "label": "kind", "shifts": {"sketch": "drawn"}}
    return HuggingFaceImages(**{**OPTIONS, **chosen, **options})


def test_the_same_images_as_in_folders(root: Path) -> None:
    data = saved(root)
    data.verify()
    shift = data.sets[-1]
    assert [s.name for s in data.sets] == ["holdout", "val", "sketch"] and list(data.class_names)[-1] == "red fox"
    plain = FolderImages(**OPTIONS, train=str(root / "photo"), shifts={"sketch": str(root / "sketch")})
    plain.setup()
    theirs = plain.sets[-1]
    assert torch.equal(shift.dataset.labels, theirs.dataset.labels) and len(shift.dataset) == 22
    # Rows are in the order of the files' names, and so are the images of a folder.
    assert all(torch.equal(shift.dataset[i][0], theirs.dataset[i][0]) for i in range(22))
    assert data.train_images + len(data.sets[0].dataset) + len(data.sets[1].dataset) == 22


def test_it_is_known_again_and_damaged_rows_are_named(root: Path, tmp_path: Path) -> None:
    one, two, other = saved(root), saved(root), saved(root, val_seed=1)
    for data in (one, two, other):
        data.setup()
    prints = [[s.fingerprint for s in data.sets] for data in (one, two, other)]
    assert prints[0] == prints[1] and prints[0][1] != prints[2][1]
    rows = {"image": [{"bytes": b"no image", "path": None}] * 6, "label": ["cat", "dog"] * 3}
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).cast_column("image", datasets.Image()).save_to_disk(tmp_path)
    data = HuggingFaceImages(**{**OPTIONS, "batch_size": 2}, path=str(tmp_path))
    looked = inspect(data)
    assert looked.sets["train"]["damaged"]["train/0"] == "not an image"
    assert sum(len(found["damaged"]) for found in looked.sets.values()) == 6


def test_what_sets_share_is_found(root: Path, tmp_path: Path) -> None:
    """Rows are compared as files are, and the page shows them."""
    pytest.importorskip("imagehash")
    drawn, photos = (datasets.load_from_disk(str(root / "saved"))[split] for split in ("drawn", "train"))
    both = datasets.concatenate_datasets([drawn, photos.select([3, 5])])
    datasets.DatasetDict({"train": photos, "drawn": both}).save_to_disk(str(tmp_path / "saved"))
    looked = inspect(saved(tmp_path))
    shared = {later: [looked.paths[later][p.ours] for p in pairs] for (later, _), pairs in looked.leaks.items()}
    assert sorted(one for keys in shared.values() for one in keys) == ["drawn/22", "drawn/23"]
    page = write_page(tmp_path / "check.html", looked).read_text()
    assert page.count("data:image/jpeg") >= 4 and "drawn/22" in page
    assert all(found["formats"] == {"PNG": found["images"]} for found in looked.sets.values())
    assert {what for found in looked.sets.values() for what in found["odd"].values()} == {"tiny: 20 × 18 pixels"}


@pytest.mark.parametrize("split", ["train", "drawn"])
def test_a_split_without_rows(root: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    splits = dict(datasets.load_from_disk(str(root / "saved")))
    splits[split] = splits[split].select([])
    monkeypatch.setattr(HuggingFaceImages, "_load", lambda _: splits)
    with pytest.raises(UserError, match=f"the split {split} has no rows"):
        saved(root).setup()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"splits": {"train": "trian"}}, "data.splits.train=trian: .* has no such split. Did you mean train?"),
        ({"shifts": {"x": "draw"}}, "data.shifts.x=draw: .* has no such split. Did you mean drawn?"),
        ({"image": "image"}, "no column 'image' in train. It has picture, kind; name it: data.image=COLUMN"),
        ({"label": "picture"}, "holds no classes"),
        ({"image": "kind"}, "'kind' holds no images"),
        ({"path": "/no/where"}, "there is no such folder, and .* does not answer|cannot be loaded"),
    ],
)
def test_mistakes_are_one_line(root: Path, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        saved(root, **options).verify()
    assert "\n" not in str(error.value)
    assert json.dumps(str(error.value))


def test_there_are_no_files_to_copy(root: Path) -> None:
    with pytest.raises(UserError, match="has its images in tables"):
        saved(root).prepare()
