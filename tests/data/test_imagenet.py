import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustft.common.errors import UserError
from robustft.data.imagenet import ImageNetData, official_classes
from robustft.data.sets import Preprocess
from tests.needs import SHARED, shared

from .conftest import CLASSES, make_data, write_image

ORDER = ["holdout", "imagenet", "imagenet_v2", "imagenet_r", "imagenet_sketch", "objectnet", "imagenet_a"]


def by_name(data: ImageNetData) -> dict:
    data.setup()
    return {s.name: s for s in data.sets}


def test_the_sets_come_in_the_order_of_the_reports(root: Path) -> None:
    data = make_data(root)
    data.verify()
    assert [s.name for s in data.sets] == ORDER
    assert [len(s.dataset) for s in data.sets] == [1, 12, 12, 3, 12, 3, 2]
    assert len(data.val_dataloader()) == 7
    assert data.train_images == 59 and not data.partial


@pytest.mark.parametrize("name", ["imagenet", "imagenet_v2", "imagenet_sketch", "imagenet_r", "imagenet_a"])
def test_every_image_counts_for_its_class(root: Path, name: str) -> None:
    """The pixels tell the class: V2's folders are numbers (10 after 9), R and A know few classes."""
    images = by_name(make_data(root))[name]
    for i in range(len(images.dataset)):
        pixels, label, index = images.dataset[i]
        assert index == i
        assert images.correct[label].nonzero().flatten().tolist() == [round(pixels.float().mean().item() / 20)]
    kept = {"imagenet_r": [1, 4, 7], "imagenet_a": [0, 11]}.get(name, list(range(12)))
    assert images.allowed.nonzero().flatten().tolist() == kept


def test_objectnet_has_label_sets_and_loses_its_frame(root: Path) -> None:
    images = by_name(make_data(root))["objectnet"]
    right = {
        key.split("/")[0]: images.correct[images.dataset.labels[i]].nonzero().flatten().tolist()
        for i, key in enumerate(images.keys)
    }
    assert right == {"alarm": [0], "bat": [9], "cup": [2, 3]}
    assert images.allowed.nonzero().flatten().tolist() == [0, 2, 3, 9]
    assert images.dataset[0][0].amax((1, 2)).tolist() == [0, 0, 200]


def test_objectnet_without_mappings_says_what_is_missing(root: Path) -> None:
    (root / "objectnet-1.0/mappings/imagenet_to_label_2012_v2").unlink()
    with pytest.raises(UserError, match=r"mappings/imagenet_to_label_2012_v2 is missing"):
        make_data(root).verify()


def test_official_classes_are_the_sorted_wordnet_ids() -> None:
    classes = official_classes()
    assert classes.wnids == sorted(classes.wnids) and len(set(classes.wnids)) == len(classes.names) == 1000
    assert classes.wnids[0] == "n01440764" and classes.names[0] == "tench"
    for subset in (classes.imagenet_r, classes.imagenet_a):
        assert len(set(subset)) == 200 and set(subset) < set(classes.wnids)


@pytest.mark.parametrize("usual", ["imagenet", "ImageNet", "."])
def test_imagenet_is_found_under_its_usual_names(root: Path, usual: str) -> None:
    for split in ("train", "val"):
        (root / usual).mkdir(exist_ok=True)
        (root / "ILSVRC2012" / split).rename(root / usual / split)
    (root / "imagenet-sketch").rename(root / "sketch")
    (root / "objectnet-1.0").rename(root / "objectnet")
    (root / "imagenetv2-matched-frequency-format-val").rename(root / "imagenetv2-matched-frequency")
    make_data(root).verify()


def test_a_set_can_have_its_own_path_or_be_left_out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "renditions"
    (root / "imagenet-r").rename(elsewhere)
    data = make_data(root, sets={"imagenet_r": str(elsewhere), "objectnet": False, "imagenet_a": None})
    data.verify()
    assert [s.name for s in data.sets] == [name for name in ORDER if name != "objectnet"]


def test_missing_sets_are_listed_with_every_place_looked_at(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        make_data(tmp_path / "nowhere").verify()
    message = str(error.value)
    for place in ("ILSVRC2012/train", "ILSVRC2012/val", "imagenetv2-matched-frequency", "objectnet/images"):
        assert str(tmp_path / "nowhere" / place) in message
    assert "data.sets.imagenet_r=false" in message and "data.sets.imagenet_r=DIR" in message
    assert "data.sets.imagenet=false" not in message
    with pytest.raises(UserError, match="data.root is not set"):
        make_data(None).verify()


def test_options_that_make_no_sense(root: Path) -> None:
    with pytest.raises(UserError, match="data.sets.imagenet_rr: no such set. Nearest: imagenet_r"):
        make_data(root, sets={"imagenet_rr": False})
    with pytest.raises(UserError, match="cannot be left out"):
        make_data(root, sets={"imagenet": False})
    with pytest.raises(UserError, match="data.batch_size=64 is more than the 59 training images"):
        make_data(root, batch_size=64).verify()
    make_data(root, batch_size=64).verify(training=False)
    with pytest.raises(UserError, match="data.holdout=60 leaves nothing"):
        make_data(root, holdout=60).verify()
    with pytest.raises(UserError, match="data.eval_images=0"):
        make_data(root, eval_images=0)


@pytest.mark.parametrize("folder", ["ILSVRC2012/val", "imagenet-r", "imagenet-sketch", "objectnet-1.0/images"])
def test_a_folder_of_no_class_is_named(root: Path, folder: str) -> None:
    (root / folder / "n99999999").mkdir()
    with pytest.raises(UserError, match=rf"{re.escape(folder)}: its folders .*no class \(n99999999\)"):
        make_data(root).verify()


def test_missing_and_empty_class_folders(root: Path) -> None:
    image = root / "ILSVRC2012/val/n00000003/val_3.JPEG"
    image.unlink()
    make_data(root).verify()  # a subset is legitimate
    image.parent.rmdir()
    with pytest.raises(UserError, match=r"1 is missing \(n00000003\)"):
        make_data(root).verify()
    image.parent.mkdir()
    for file in (root / "ILSVRC2012/train/n00000005").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"no training images of 1 of 12 classes \(n00000005\)"):
        make_data(root).verify()


def test_evaluation_alone_does_without_training_images(root: Path) -> None:
    for wnid in CLASSES.wnids:
        for file in (root / "ILSVRC2012/train" / wnid).iterdir():
            file.unlink()
        (root / "ILSVRC2012/train" / wnid).rmdir()
    (root / "ILSVRC2012/train").rmdir()
    with pytest.raises(UserError, match="data.holdout=0"):
        make_data(root).verify(training=False)
    data = make_data(root, holdout=0)
    data.verify(training=False)
    assert [s.name for s in data.sets] == ORDER[1:]


def test_eval_images_draws_the_same_images_for_every_seed(root: Path) -> None:
    one, other = (by_name(make_data(root, eval_images=2, seed=seed, holdout=12)) for seed in (0, 1))
    assert [len(s.dataset) for s in one.values()] == [2] * 7
    assert all(one[name].keys == other[name].keys for name in ORDER[1:])
    assert one["holdout"].keys != other["holdout"].keys
    assert one["imagenet_v2"].partial and not one["imagenet_a"].partial


def test_holdout_is_stratified_and_disjoint_from_training(root: Path) -> None:
    data = make_data(root, holdout=12, holdout_seed=7)
    holdout = by_name(data)["holdout"]
    assert sorted(holdout.dataset.labels.tolist()) == list(range(12))
    trained = {data.training_set().key(int(i)) for batch in data.train_dataloader() for i in batch.indices}
    assert trained.isdisjoint(holdout.keys) and len(trained) == data.train_images == 48
    assert by_name(make_data(root, holdout=12, holdout_seed=7, seed=5))["holdout"].keys == holdout.keys


def test_batches_know_their_images(root: Path) -> None:
    data = make_data(root)
    for batch in data.train_dataloader():
        assert batch.images.shape == (8, 3, 16, 16) and batch.images.dtype == torch.uint8
        assert torch.equal(batch.labels, data.training_set().labels[batch.indices])
        images = data.preprocess.normalise(batch.images)
        assert images.dtype == torch.float32 and images.min() < 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_truncated_image_is_named_also_by_worker_processes(root: Path, num_workers: int) -> None:
    data = make_data(root, num_workers=num_workers)
    data.setup()
    loader = data.train_dataloader()
    for file in (root / "ILSVRC2012/train").glob("*/*"):
        file.write_bytes(file.read_bytes()[:-100])
    message = ""
    try:
        list(loader)
    except UserError as error:  # pytest.raises would keep the workers alive: they take 5 s each to give up
        message = str(error)
    assert re.match(r"Cannot read the image \S+/train/n\d+/n\d+_\d.JPEG: .*[Tt]runcated", message)
    assert "Traceback" not in message


def test_damaged_images_are_found_before_training(root: Path) -> None:
    file = root / "imagenet-a/n00000011/0.jpg"
    file.write_bytes(file.read_bytes() + b"\0" * 100)  # trailing bytes are no damage
    make_data(root).verify()
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="imagenet-a/n00000011/0.jpg: .*[Tt]runcated"):
        make_data(root).verify()
    file.write_text("404 not found")
    with pytest.raises(UserError, match="imagenet-a/n00000011/0.jpg: not an image"):
        make_data(root).verify()


def test_class_folders_may_be_links_and_hold_other_files(root: Path, tmp_path_factory) -> None:
    folder = root / "imagenet-r/n00000001"
    real = tmp_path_factory.mktemp("real") / "n00000001"
    folder.rename(real)
    folder.symlink_to(real)
    (real / "README.txt").write_text("not an image")
    (real / "._0.jpg").write_bytes(b"\0")
    (root / "imagenet-r/README.txt").write_text("not a class")
    assert by_name(make_data(root))["imagenet_r"].keys == [
        "n00000001/0.jpg",
        "n00000004/0.jpg",
        "n00000007/0.jpg",
    ]


def test_images_are_read_in_any_mode(root: Path) -> None:
    folder = root / "imagenet-a/n00000000"
    for mode in ("L", "CMYK"):
        Image.new(mode, (30, 20)).save(folder / f"{mode}.jpg")
    Image.new("P", (30, 20)).save(folder / "P.png")
    write_image(folder / "Ä ö.PNG")
    images = by_name(make_data(root))["imagenet_a"]
    assert len(images.dataset) == 6
    assert all(images.dataset[i][0].shape == (3, 16, 16) for i in range(6))


@shared("data/imagenet-sample")
def test_the_sample_of_the_real_sets() -> None:
    data = ImageNetData(
        root=str(SHARED / "data/imagenet-sample"),
        preprocess=Preprocess(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        seed=0,
        batch_size=8,
        eval_batch_size=8,
    )
    data.verify()
    assert len(data.training_set()) == 1000 and data.train_images == 990
    assert [len(s.dataset) for s in data.sets] == [10, 1000, 1000, 200, 1000, 113, 200]
    assert [len(s.correct) for s in data.sets] == [1000, 1000, 1000, 200, 1000, 113, 200]
