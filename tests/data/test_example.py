"""`robustft example DIR`: images to try everything with."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from robustft.common.errors import UserError
from robustft.data.example import main
from robustft.data.own.domains import DomainImages
from robustft.data.own.table import TableImages
from robustft.data.scenes.example import DOMAINS, write_example
from robustft.data.scenes.recipes import CLASSES
from tests.data.own import OPTIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("example") / "mine"
    assert write_example(place, 2) == 2 * len(CLASSES) * len(DOMAINS)
    return place


def test_it_is_read_as_domains_and_as_a_table(folder: Path) -> None:
    one = DomainImages(**OPTIONS, root=str(folder), source="photo", templates="plain")
    two = TableImages(**OPTIONS, path=str(folder / "table.csv"), templates="plain")
    for data in (one, two):
        data.verify()
        assert list(data.class_names) == sorted(CLASSES)
    assert {s.name: len(s.dataset) for s in one.sets} == {s.name: len(s.dataset) for s in two.sets}
    assert one.train_images + len(one.sets[0].dataset) + len(one.sets[1].dataset) == 2 * len(CLASSES)


def test_every_file_is_an_image_and_none_is_there_twice(folder: Path) -> None:
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    contents = {Image.open(folder / row["path"]).convert("RGB").tobytes() for row in rows}
    assert len(contents) == len(rows) and {row["split"] for row in rows} == {"train", *list(DOMAINS)[1:]}


def test_what_is_around_the_object_is_another_task(folder: Path) -> None:
    with (folder / "places.csv").open(newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert len(labels) == 2 * len(CLASSES) * len(DOMAINS) and {"thing in water", "thing at night"} <= set(labels)
    assert len(set(labels)) == 8


def test_a_folder_that_holds_something_is_left_alone(folder: Path) -> None:
    with pytest.raises(UserError, match="is there already: give a new folder"):
        write_example(folder, 2)
    with pytest.raises(UserError, match="--images=0: expected a whole number, 1 or more"):
        main([str(folder), "--images", "0"])
