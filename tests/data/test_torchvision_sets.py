"""torchvision's sets as tasks: the images and labels that torchvision itself gives, and what is private to it."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from robustft.common.errors import UserError
from robustft.data.own import torchvision_sets
from robustft.data.own.tasks import make_task
from robustft.data.own.torchvision_sets import SETS, TorchvisionImages
from robustft.data.sets import Preprocess
from tests.data.own import colour

HALVES = Preprocess(16, (0.5,) * 3, (0.5,) * 3)


def mnist(root: Path) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    labels = np.arange(6, dtype=np.uint8)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))


def eurosat(root: Path) -> None:
    for k, name in enumerate(("AnnualCrop", "SeaLake")):
        for i in range(3):
            colour(root / "eurosat" / "2750" / name / f"{i}.jpg", 3 * k + i)


def dtd(root: Path) -> None:
    for k, name in enumerate(("banded", "blotchy")):
        colour(root / "dtd" / "dtd" / "images" / name / "1.jpg", k)
    (root / "dtd" / "dtd" / "labels").mkdir()
    (root / "dtd" / "dtd" / "labels" / "test1.txt").write_text("banded/1.jpg\nblotchy/1.jpg\n")


def food(root: Path) -> None:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for k, name in enumerate(("apple_pie", "waffles")):
        colour(folder / "images" / name / "1.jpg", k)
    (folder / "meta" / "test.json").write_text('{"apple_pie": ["apple_pie/1"], "waffles": ["waffles/1"]}')


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "trimaps").mkdir()
    rows = []
    for k, name in enumerate(("Abyssinian", "american_bulldog")):
        colour(folder / "images" / f"{name}_1.jpg", k)
        rows.append(f"{name}_1 {k + 1} 1 1")
    (folder / "annotations" / "test.txt").write_text("\n".join(rows))


def gtsrb(root: Path) -> None:
    folder = root / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    for k in range(2):
        (folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 90 * k, np.uint8)).save(folder / f"0000{k}.ppm")
    lines = ["Filename;Width;Height;ClassId", "00000.ppm;8;8;0", "00001.ppm;8;8;1"]
    (root / "gtsrb" / "GT-final_test.csv").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("name", "write", "options", "classes"),
    [
        ("MNIST", mnist, {"train": False}, ["zero", "one", "two"]),
        ("EuroSAT", eurosat, {}, ["annual crop", "sea lake"]),
        ("DTD", dtd, {"split": "test"}, ["banded", "blotchy"]),
        ("Food101", food, {"split": "test"}, ["apple pie", "waffles"]),
        ("OxfordIIITPet", pets, {"split": "test"}, ["Abyssinian", "American Bulldog"]),
        ("GTSRB", gtsrb, {"split": "test"}, ["0", "1"]),
    ],
)
def test_the_images_and_labels_are_torchvisions(tmp_path: Path, name, write, options, classes) -> None:
    write(tmp_path)
    task = make_task(name.lower(), {"path": str(tmp_path), "kind": "torchvision", "templates": "plain"}, HALVES)
    theirs, ours = getattr(torchvision.datasets, name)(str(tmp_path), **options), task.images.dataset
    assert list(task.class_names)[: len(classes)] == classes and len(ours) == len(theirs)
    for i, (image, label) in enumerate(theirs):
        pixels, own, position = ours[i]
        assert pixels.equal(HALVES.pixels(image.convert("RGB"))) and (own, position) == (label, i)
    again = make_task(name.lower(), {"path": str(tmp_path), "kind": "torchvision", "templates": "plain"}, HALVES)
    assert again.images.fingerprint == task.images.fingerprint


def test_other_pixels_are_another_set(tmp_path: Path) -> None:
    mnist(tmp_path)
    options = {"path": str(tmp_path), "kind": "torchvision"}
    first = make_task("mnist", options, HALVES)
    assert isinstance(first.images.dataset, TorchvisionImages)
    few = make_task("mnist", options | {"images": 3}, HALVES)
    larger = make_task("mnist", options, Preprocess(24, (0.5,) * 3, (0.5,) * 3))
    assert len({task.images.fingerprint for task in (first, few, larger)}) == 3
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    assert make_task("mnist", options, HALVES).images.fingerprint != first.images.fingerprint


def test_what_is_not_there(tmp_path: Path) -> None:
    for name, split, words in (
        ("mnist", None, "no MNIST there. Fetch it with python -c \"from torchvision.datasets import MNIST; MNIST('"),
        ("mnist", "val", "retain.mnist.split=val: MNIST has train and test"),
        ("dtd", "tset", "retain.dtd.split=tset:"),
        ("eurosat", "test", "retain.eurosat.split=test: EuroSAT has no splits"),
        ("imagenet", None, "no set is called imagenet. There are CIFAR10"),
    ):
        with pytest.raises(UserError) as error:
            make_task(name, {"path": str(tmp_path), "kind": "torchvision", "split": split}, HALVES)
        assert words in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_every_set_is_torchvisions_and_says_where_its_images_are() -> None:
    """Names that are private to torchvision: where one has moved, this says which."""
    import inspect

    for name in SETS:
        kind = getattr(torchvision.datasets, name)
        text = "".join(inspect.getsource(base) for base in kind.__mro__ if base.__module__.startswith("torchvision"))
        places = [place for place in (*torchvision_sets.FILES, torchvision_sets.PIXELS) if f"self.{place}" in text]
        assert places, name
        if not set(places) & {"samples", "_samples"}:
            assert any(f"self.{place}" in text for place in torchvision_sets.LABELS), name
