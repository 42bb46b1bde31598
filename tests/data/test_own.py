"""A user's own images: three ways to the same images are one; what is drawn, named, refused."""

import csv
import json
import logging
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.data.folders import whole_of
from robustft.data.inspection import inspect
from robustft.data.own import listing
from robustft.data.own.collection import OwnImages
from robustft.data.own.domains import DomainImages
from robustft.data.own.folders import FolderImages
from robustft.data.own.listing import drawn, inside_of
from robustft.data.own.names import names_of, read_names, readable, wordnet_name
from robustft.data.own.prompts import templates_of, with_synonyms
from robustft.data.own.table import TableImages, read_table
from robustft.data.prepared import PreparedImages
from robustft.data.sampling import balanced
from tests.needs import SHARED, shared

from .own import CLASSES, OPTIONS, colour, write_domains

PACS = SHARED / "data/pacs-mini"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_domains(tmp_path_factory.mktemp("own"))


def folders(root: Path, **options) -> FolderImages:
    shifts = {name: str(root / name) for name in ("sketch", "cartoon") if (root / name).is_dir()}
    return FolderImages(**{**OPTIONS, "train": str(root / "photo"), "shifts": shifts, **options})


def domains(root: Path, **options) -> DomainImages:
    return DomainImages(**{**OPTIONS, "root": str(root), "source": "photo", **options})


def table(root: Path, place: Path, **options) -> TableImages:
    """Rows in an order that says nothing."""
    rows = [(str(path.relative_to(root)), path.parent.name, path.parts[-3]) for path in root.glob("*/*/*.*")]
    with (place / "t.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("path", "label", "split"))
        lines.writerows((p, c, "train" if d == "photo" else d) for p, c, d in sorted(rows, key=lambda row: hash(row)))
    return TableImages(**{**OPTIONS, "path": str(place / "t.csv"), "root": str(root), **options})


def numbers(data: OwnImages) -> dict[str, torch.Tensor]:
    """All that a run sees of its data, in the order in which it sees it."""
    data.verify()
    seen = {f"{s.name} pixels": torch.stack([s.dataset[i][0] for i in range(len(s.dataset))]) for s in data.sets}
    seen |= {f"{s.name} labels": s.dataset.labels for s in data.sets}
    seen["trained on"] = torch.cat([batch.images for batch in data.train_dataloader()])
    return seen


@pytest.mark.parametrize("options", [{}, {"seed": 3}, {"shots": 4}, {"sampler": "balanced"}, {"eval_images": 2}])
def test_three_ways_to_the_same_images_are_one(root: Path, tmp_path: Path, options) -> None:
    one = numbers(folders(root, **options))
    for other in (numbers(domains(root, **options)), numbers(table(root, tmp_path, **options))):
        assert set(other) == set(one)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["tsv", "semicolons", "parquet"])
def test_tables_of_every_kind_say_the_same(root: Path, tmp_path: Path, kind: str) -> None:
    plain = table(root, tmp_path)
    expected = numbers(plain)
    with plain.path.open(newline="") as file:
        header, *rows = csv.reader(file)
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        other = tmp_path / "t.parquet"
        parquet.write_table(pa.table({name: [row[k] for row in rows] for k, name in enumerate(header)}), other)
    else:
        other = tmp_path / ("t.tsv" if kind == "tsv" else "semicolons.csv")
        with other.open("w", newline="", encoding="utf-8-sig") as file:  # as Excel saves it
            csv.writer(file, delimiter="\t" if kind == "tsv" else ";").writerows([header, *rows])
    found = numbers(TableImages(**{**OPTIONS, "path": str(other), "root": str(root)}))
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@shared("data/pacs-mini")
def test_three_ways_to_real_images_are_one(tmp_path: Path) -> None:
    one, two, three = folders(PACS), domains(PACS), table(PACS, tmp_path)
    sets = []
    for data in (one, two, three):
        data.verify()
        found = {s.name: s for s in data.sets}
        sets.append(
            {name: [Path(k).name for k in found[name].keys] for name in ("holdout", "val", "sketch", "cartoon")}
        )
        assert data.class_names == ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
        assert data.train_images == 101 and len(found["val"].dataset) == 28 and len(found["holdout"].dataset) == 11
    assert sets[0] == sets[1] == sets[2]
    assert [s.name for s in two.sets] == ["holdout", "val", "art_painting", "cartoon", "sketch"]
    for ours, theirs in zip(one.sets[:2], three.sets[:2], strict=True):
        assert torch.equal(ours.dataset[3][0], theirs.dataset[3][0])


def test_sets_carry_the_users_names_in_the_given_order(root: Path) -> None:
    data = folders(root, shifts={"zebra": str(root / "sketch"), "alpha": str(root / "cartoon"), "none": None})
    data.setup()
    assert [s.name for s in data.sets] == ["holdout", "val", "zebra", "alpha"]


def test_parts_do_not_overlap_and_keep_one_of_each_class(root: Path) -> None:
    data = folders(root, holdout=6)
    data.setup()
    parts = {s.name: set(s.keys) for s in data.sets[:2]}
    train = {data.training_set().key(i) for i in data.split[0].tolist()}
    assert len(parts["val"]) == 4 and len(parts["holdout"]) == 6 and len(train) == 12
    assert not parts["val"] & parts["holdout"] and not train & (parts["val"] | parts["holdout"])
    assert {key.split("/")[0] for key in train} == set(CLASSES)
    other = folders(root, holdout=6, seed=1)
    other.setup()
    assert set(other.sets[1].keys) == parts["val"] and set(other.sets[0].keys) != parts["holdout"]


def test_a_new_image_moves_no_other(root: Path) -> None:
    labels, keys = torch.tensor([0] * 20), [f"cat/{i}" for i in range(20)]
    before = {k for k, one in zip(keys, drawn("val", labels, keys, 5, 0), strict=True) if one}
    after = drawn("val", torch.tensor([0] * 21), [*keys, "cat/new"], 5, 0)
    assert len(before & {k for k, one in zip([*keys, "cat/new"], after, strict=True) if one}) >= 4


def test_domainbeds_protocol(root: Path) -> None:
    data = domains(root, source=None, target="cartoon")
    data.verify()
    by_name = {s.name: s for s in data.sets}
    assert list(by_name) == ["holdout", "val", "cartoon"]
    assert set(by_name["holdout"].keys) == set(by_name["val"].keys)  # the sources' 20%
    assert len(by_name["val"].dataset) == round(0.2 * 44) and len(by_name["cartoon"].dataset) == 22 - round(0.2 * 22)
    assert data.train_images == 44 - round(0.2 * 44)
    train = {data.training_set().key(i) for i in data.split[0].tolist()}
    assert not train & set(by_name["val"].keys) and {key.split("/")[0] for key in train} == {"photo", "sketch"}
    with pytest.raises(UserError, match="data.target the hold-out is what is drawn"):
        domains(root, source=None, target="cartoon", holdout=3).setup()


def test_several_domains_take_turns(root: Path) -> None:
    data = domains(root, source=["photo", "sketch"], sampler="domains", batch_size=4)
    data.setup()
    for batch in data.train_dataloader():
        keys = [data.training_set().key(i).split("/")[0] for i in batch.indices.tolist()]
        assert sorted(keys) == ["photo"] * 2 + ["sketch"] * 2
    with pytest.raises(UserError, match="of one domain alone"):
        domains(root, sampler="domains").verify()


def test_balanced_orders_give_every_group_its_share() -> None:
    groups = torch.tensor([0] * 50 + [1] * 5 + [2] * 2)
    order = balanced(groups, generator("test", 0))
    assert len(order) == 57 and torch.equal(order, balanced(groups, generator("test", 0)))
    assert groups[order].bincount().tolist() == [19, 19, 19]
    assert len(set(order[groups[order] == 0].tolist())) == 19  # none twice while others wait
    assert all(groups[order][i : i + 3].unique().numel() == 3 for i in range(0, 57, 3))


@pytest.mark.parametrize(
    ("options", "setting", "hint"),
    [
        ({"train": ""}, "data.train", "data=domains data.root={root} data.source=cartoon"),
        ({"val": ""}, "data.val", "data.val={root}/cartoon"),
        ({"shifts": {"x": ""}}, "data.shifts.x", "data.shifts.x={root}/cartoon"),
    ],
)
def test_domains_that_are_taken_for_classes_are_told(root: Path, caplog, options, setting: str, hint: str) -> None:
    here = {key: {"x": str(root)} if key == "shifts" else str(root) for key in options}
    _ = folders(root, **here).found
    told = [message for message in caplog.messages if "domains" in message]
    assert told == [
        f"{setting}={root}: its folders (cartoon, photo, sketch) hold the same folders (cat, dog, red_fox) and are"
        f" taken for the classes. Where they are domains: {hint.format(root=root)}"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"val": "photo"}, "val: 22 of its 22 images are trained on too (cat/pic_0.png, "),
        ({"shifts": {"x": "sketch/../photo"}}, "x: 22 of its 22 images are trained on too"),
        ({"val": "link"}, "val: 22 of its 22 images are trained on too"),
        ({"train": "", "val": "photo", "unknown": "skip"}, "val: 22 of its 22 images are trained on too"),
    ],
)
def test_images_that_are_trained_on_are_not_reported_on(root: Path, options: dict, said: str) -> None:
    """Without check=data, which may take hours."""
    (root / "link").exists() or (root / "link").symlink_to(root / "photo")
    data = FolderImages(**{**OPTIONS, "train": "photo", "root": str(root), "holdout": 4, **options})
    with pytest.raises(UserError, match=re.escape(said)):
        data.verify()
    if (
        "train" not in options
    ):  # nothing is trained: a folder may be evaluated as a whole; check=data tells what is shared
        data.verify(training=False)
        assert sum(len(pairs) for pairs in inspect(data).leaks.values()) >= 22


def test_draws_from_many_images_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the same ones, and a damaged file costs time alone."""
    monkeypatch.setenv("ROBUSTFT_CACHE", str(tmp_path))
    keys = [f"cat/{i}.jpg" for i in range(50)]
    fresh = listing.ranks("val", keys, 3)
    assert not list(tmp_path.rglob("*.npy"))
    monkeypatch.setattr(listing, "MANY", 50)
    assert (listing.ranks("val", keys, 3) == fresh).all()
    (file,) = tmp_path.rglob("*.npy")
    whole = file.read_bytes()
    monkeypatch.setattr(listing.hashlib, "sha256", Mock(wraps=listing.hashlib.sha256))
    assert (listing.ranks("val", keys, 3) == fresh).all() and listing.hashlib.sha256.call_count < 5
    for damaged in (b"", whole[:100], whole[:-8], b"no array"):
        file.write_bytes(damaged)
        assert (listing.ranks("val", keys, 3) == fresh).all() and file.read_bytes() == whole
    others = [listing.ranks("val", keys, 4), listing.ranks("hold-out", keys, 3), listing.ranks("val", keys[::-1], 3)]
    assert all((one != fresh).any() for one in others) and len(list(tmp_path.rglob("*.npy"))) == 4


def test_links_that_lead_nowhere_and_folders_of_file_systems(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "photo", tmp_path / "photo", symlinks=True)
    (tmp_path / "photo" / "lost+found").mkdir(mode=0)
    (tmp_path / "photo" / "cat" / "itself").symlink_to("itself")
    (tmp_path / "photo" / "cat" / "back").symlink_to("..")
    assert len(listing.scan(tmp_path / "photo", "data.train")) == 22 + 12  # the others' once, from within cat


def test_a_folder_that_may_be_passed_and_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are looked at where they are, and not in the working directory."""
    data = folders(root)
    data.setup()
    files = whole_of(data.training_set())[0]
    known = files.stamps(np.arange(len(files))).copy()
    files._stamps = None

    def refused(*_: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr("robustft.data.folders.os.open", refused)
        assert (files.stamps(np.arange(len(files))) == known).all() and known.min() > 0


def test_a_domain_is_named_once(root: Path) -> None:
    with pytest.raises(UserError, match="data.source: photo is named twice"):
        domains(root, source=["photo", "sketch", "photo"]).setup()


def test_draws_that_nobody_makes_are_refused(root: Path, tmp_path: Path) -> None:
    """Where only the images tell that a setting means nothing."""
    rows = [f"{root}/photo/cat/pic_{i}.png,cat,{'train' if i else 'val'}" for i in range(9)]
    rows += [f"{root}/photo/dog/pic_{i}.png,dog,{'train' if i else 'val'}" for i in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    for name in ("val_share", "val_seed"):
        value = {"val_share": 0.5, "val_seed": 5}[name]
        with pytest.raises(UserError, match=rf"data\.{name}={value}: the ID set has images of its own. Leave it out"):
            TableImages(**OPTIONS, path=str(tmp_path / "t.csv"), **{name: value}).setup()


def test_classes_in_folders_of_their_own_are_no_domains(tmp_path: Path, caplog) -> None:
    for number, name in enumerate(("cat/2023/a", "cat/2024/b", "cat/c", "dog/2023/d", "dog/2024/e")):
        colour(tmp_path / "loose" / f"{name}.png", number)
    for number, name in enumerate(("cat/tabby/a", "cat/young/b", "dog/beagle/c", "dog/young/d")):
        colour(tmp_path / "kinds" / f"{name}.png", number)
    for place in ("loose", "kinds"):
        assert set(FolderImages(**{**OPTIONS, "train": str(tmp_path / place)}).found.train.classes) == {"cat", "dog"}
    _ = domains(write_domains(tmp_path / "d")).found
    assert not caplog.messages


def test_shots_limit_all_that_is_selected_and_trained_by(root: Path) -> None:
    data = folders(root, shots=3)
    data.setup()
    assert len(data.training_set()) == 9 and data.train_images + len(data.sets[0].dataset) == 9


@pytest.mark.parametrize(("candidates", "allowed"), [("all", [0, 1, 2]), ("present", [0, 2])])
def test_a_shift_may_lack_classes(tmp_path: Path, caplog, candidates: str, allowed: list[int]) -> None:
    write_domains(tmp_path, domains=("photo",))
    for name in ("cat", "red_fox"):
        colour(tmp_path / "few" / name / "a.png", 1)
    with caplog.at_level(logging.INFO, "robustft"):
        data = folders(tmp_path, shifts={"few": str(tmp_path / "few")}, candidates=candidates)
        data.verify()
    assert "few: has 2 of the 3 classes" in caplog.messages
    (few,) = [s for s in data.sets if s.name == "few"]
    assert few.allowed.nonzero().flatten().tolist() == allowed
    assert few.dataset.labels.tolist() == [0, 2]


def test_unknown_classes_of_a_shift(tmp_path: Path, caplog) -> None:
    write_domains(tmp_path, domains=("photo",))
    for name in ("cat", "dgo", "zzz"):
        colour(tmp_path / "odd" / name / "a.png", 1)
    options = {"shifts": {"odd": str(tmp_path / "odd")}}
    with pytest.raises(UserError, match=r"odd: 2 classes unknown.*dgo \(dog\?\), zzz.*data.unknown=skip"):
        folders(tmp_path, **options).verify()
    with caplog.at_level(logging.INFO, "robustft"):
        data = folders(tmp_path, **options, unknown="skip")
        data.verify()
    assert "odd: left out 2 images of 2 unknown classes" in caplog.messages
    assert len(data.sets[-1].dataset) == 1


def test_classes_with_one_image_and_no_image_to_spare(tmp_path: Path, caplog) -> None:
    for k, count in enumerate((1, 1, 6)):
        for i in range(count):
            colour(tmp_path / "train" / CLASSES[k] / f"{i}.png", 10 * k + i)
    data = FolderImages(**{**OPTIONS, "train": str(tmp_path / "train"), "batch_size": 2})
    data.verify()
    trained = {data.training_set().key(i).split("/")[0] for i in data.split[0].tolist()}
    assert trained == set(CLASSES) and len(data.sets[1].dataset) == 2 and len(data.sets[0].dataset) == 1
    for i in range(1, 6):
        (tmp_path / "train" / "red_fox" / f"{i}.png").unlink()
    with pytest.raises(UserError, match="no image can be set aside for the ID set"):
        FolderImages(**{**OPTIONS, "train": str(tmp_path / "train")}).verify()
    for name in CLASSES:
        colour(tmp_path / "val" / name / "a.png", 99)
    with caplog.at_level(logging.INFO, "robustft"):
        data = FolderImages(**{**OPTIONS, "batch_size": 3}, train=str(tmp_path / "train"), val=str(tmp_path / "val"))
        data.verify()
    assert data.holdout == 0 and [s.name for s in data.sets] == ["val"]
    assert any("no hold-out" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("images", "batch", "epochs"), [(9, 8, 50), (101, 8, 42), (700, 64, 50), (6000, 512, 46), (60000, None, None)]
)
def test_small_sets_have_a_rule(root: Path, monkeypatch, images: int, batch: int | None, epochs: int | None) -> None:
    monkeypatch.setattr(FolderImages, "train_images", images)
    recipe = {"batch_size": 512, "max_epochs": 10}
    expected = {k: v for k, v in {"batch_size": batch, "max_epochs": epochs}.items() if v and v != recipe[k]}
    assert folders(root, batch_size=512).settle(recipe) == expected
    assert folders(root).settle({}) == {}  # typed


def test_prepared_copies_are_the_same(root: Path, tmp_path: Path) -> None:
    plain = numbers(folders(root))
    folders(root, prepared=str(tmp_path)).prepare()
    data = folders(root, prepared=str(tmp_path))
    copied = numbers(data)
    assert isinstance(data.images("train"), PreparedImages) and isinstance(data.sets[2].dataset, PreparedImages)
    assert all(torch.equal(plain[name], copied[name]) for name in plain)
    assert [s.fingerprint for s in data.sets] == [s.fingerprint for s in folders_ready(root).sets]
    with pytest.raises(UserError, match="prepare=true: no folder for the copies. Give data.prepared=DIR"):
        folders(root).prepare()


def folders_ready(root: Path) -> FolderImages:
    data = folders(root)
    data.setup()
    return data


# Names


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("art_painting", "art painting"),
        ("GoldenRetriever", "golden retriever"),
        ("sportsCar", "sports car"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("BMW_M3", "BMW M3"),
        ("USBDrive", "USB drive"),
        ("green-cup", "green cup"),
        ("old-green-cup", "old green cup"),
        ("Rolls-Royce", "Rolls Royce"),
        ("grüne-tasse", "grüne tasse"),
        ("T-shirt", "T-shirt"),
        ("red-t-shirt", "red t-shirt"),
        ("jack-o-lantern", "jack-o-lantern"),
        ("covid-19", "covid-19"),
        ("DC-10", "DC-10"),
        ("four-poster_bed", "four-poster bed"),
        ("four-poster bed", "four-poster bed"),
        ("iPod", "iPod"),
        ("n02099601", "Golden Retriever"),
        ("n99999999", "n99999999"),
        ("Köln_Dom", "Köln Dom"),
        ("17", "17"),
    ],
)
def test_folder_names_are_made_readable(folder: str, name: str) -> None:
    assert readable(folder) == name


def test_results_say_what_classes_are_called(root: Path) -> None:
    assert folders(root).protocol()["class_names"] == {"cat": ["cat"], "dog": ["dog"], "red_fox": ["red fox"]}


def test_wordnet_ids_outside_of_the_thousand_classes_are_timms() -> None:
    assert wordnet_name("n00007846") == "person" and wordnet_name("n99999999") is None


@pytest.mark.parametrize("folder", ["0", "17", "class_a", "class1", "n99999999", "x", "Category-3", "label 2"])
def test_names_that_are_no_words_get_a_warning(folder: str, caplog) -> None:
    names_of([folder, "dog"], None)
    (message,) = caplog.messages
    assert "1 of the 2 classes" in message and folder.split("_")[0] in message and "data.class_names" in message


def test_words_get_none(caplog) -> None:
    names_of(["dog", "ox", "classroom", "number 7 shirt", "狗"], None)
    assert not caplog.messages


def test_names_that_collide_are_refused() -> None:
    with pytest.raises(UserError, match="GoldenRetriever and golden_retriever are both called 'golden retriever'"):
        names_of(["GoldenRetriever", "golden_retriever"], None)
    with pytest.raises(UserError, match="a and b are both called 'Dog'"):
        names_of(["a", "b"], {"a": ["dog"], "b": ["hound", "Dog"]})


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_names_of_ones_own(root: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"names.{kind}"
    names = {"cat": ["a tabby", "a kitten"], "dog": ["hound"], "red_fox": ["fox"]}
    if kind == "json":
        path.write_text(json.dumps({k: v if len(v) > 1 else v[0] for k, v in names.items()}))
    else:
        path.write_text("folder,name\n" + "".join(f"{k},{one}\n" for k, v in names.items() for one in v))
    data = folders(root, class_names=str(path), templates=["{}!", "see {}"])
    assert data.class_names == ["a tabby", "hound", "fox"]
    said = {
        name: [t.format(name) if isinstance(t, str) else t(name) for t in data.templates] for name in data.class_names
    }
    assert said["a tabby"] == ["a tabby!", "a kitten!", "see a tabby", "see a kitten"]
    assert said["hound"] == ["hound!", "hound!", "see hound", "see hound"]
    assert data.protocol()["templates"] == ["{}!", "see {}"] and data.protocol()["class_names"] == names
    path.write_text(json.dumps({"cat": "x", "dog": "y"}) if kind == "json" else "folder,name\ncat,x\ndog,y\n")
    with pytest.raises(UserError, match=r"no name for 1 of the 3 classes \(red_fox\): it has to name all"):
        folders(root, class_names=str(path)).verify()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("n.txt", b"cat\ndog\n", "expected .json or .csv: JSON"),
        ("n", b"cat\ndog\n", "expected .json or .csv: JSON"),
        ("n.json", b'{\n"cat": "a cat"\n"dog": "a dog"}', "a mistake in line 3, so it is no JSON. Expected JSON"),
        ("n.json", b"cat\n", "a mistake in line 1, so it is no JSON"),
        ("n.json", b"[" * 100_000, "a mistake, so it is no JSON"),
        ("n.json", b'["cat", "dog"]', "it holds a list. Expected JSON"),
        ("n.json", b'{"cat": 3}', "'cat' is called 3, expected a name"),
        ("n.csv", b"class,called\ncat,a cat\n", "columns folder and name, found class, called"),
        ("n.csv", b"folder;name\ncat;a cat\n", "columns folder and name, found folder;name"),
        ("n.csv", b"folder,name\ncat\n", "'cat' is called [None], expected a name"),
        ("n.csv", b"\xff\xfe", "it is no text in UTF-8"),
        ("none.csv", None, "No such file or directory. Expected JSON"),
    ],
)
def test_names_that_cannot_be_read(tmp_path: Path, file: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_names(tmp_path / file)
    said = str(error.value)
    assert said.startswith(f"data.class_names={tmp_path / file}: ") and words in said and "\n" not in said
    assert "char" not in said and "Expecting" not in said


def test_templates(tmp_path: Path) -> None:
    assert [len(templates_of(name)) for name in ("imagenet", "simple", "plain")] == [80, 7, 1]
    (tmp_path / "t.txt").write_text("a {}.\n\nthe {}.\n")
    assert templates_of(str(tmp_path / "t.txt")) == ["a {}.", "the {}."] == templates_of(["a {}.", "the {}."])
    assert with_synonyms(["a {}"], [["x"], ["y"]]) == ["a {}"]
    for wrong in (["no place"], ["{} {}"], ["{name} {}"], []):
        with pytest.raises(UserError, match="template"):
            templates_of(wrong)
    with pytest.raises(UserError, match=r"neither a preset \(imagenet, simple, plain\) nor a file"):
        templates_of("imagnet")


def test_the_path_inside_of_a_class() -> None:
    assert inside_of("photo/dog/a/b.png", "dog") == "a/b.png"
    assert inside_of("photo/dog.png", "dog") == "photo/dog.png"
    assert inside_of("/data/dog/dog/1.png", "dog") == "1.png"


@pytest.mark.parametrize("header", ["path,label,split", "path, label, split", " path ,label ,split "])
def test_spaces_in_a_header_change_nothing(header: str, tmp_path: Path):
    (tmp_path / "t.csv").write_text(f"{header}\na.jpg,cat,train\nb.jpg,cat,val\n")
    names, rows = read_table(tmp_path / "t.csv", "data.table")
    assert names == ["path", "label", "split"]
    assert [row["split"] for row in rows] == ["train", "val"] and set(rows[0]) == set(names)
