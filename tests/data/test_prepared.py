"""Prepared copies: the same items as the files, never a wrong one, whatever happened while they were made."""

import errno
import logging
import multiprocessing
import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import PIL
import pytest
import torch

from robustft.common.errors import UserError
from robustft.common.locks import locked
from robustft.data import prepare as making
from robustft.data import prepared
from robustft.data.check import check
from robustft.data.folders import ImageFolders
from robustft.data.prepare import prepare
from robustft.data.prepared import PreparedImages, open_copy, shard_path
from robustft.data.sets import ImageSet

from .conftest import PREPROCESS, make_data, write_image

TRAIN = "prepared/imagenet_train-16px-bicubic"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SHARD", 8)


def assert_same(one: ImageSet, other: ImageSet) -> None:
    assert len(one) == len(other) and torch.equal(one.labels, other.labels)
    for i in range(len(one)):
        assert torch.equal(one[i][0], other[i][0]) and one[i][1:] == other[i][1:] and one.key(i) == other.key(i)


def flip_bit(path: Path) -> None:
    """In the pixels of the last image."""
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def state(root: Path) -> dict[Path, int]:
    """The files below; a file made anew is another one."""
    return {path: path.stat().st_ino for path in root.rglob("*") if path.is_file()}


def test_every_set_is_the_same_as_from_its_files(root: Path) -> None:
    make_data(root).prepare()
    fast, slow = make_data(root), make_data(root, prepared=False)
    for data in (fast, slow):
        data.verify()
    assert isinstance(fast.training_set(), PreparedImages) and isinstance(slow.training_set(), ImageFolders)
    assert_same(fast.training_set(), slow.training_set())
    for ours, theirs in zip(fast.sets, slow.sets, strict=True):
        assert_same(ours.dataset, theirs.dataset)
        assert ours.name == theirs.name and ours.keys == theirs.keys
        assert ours.fingerprint == theirs.fingerprint  # scores remembered for one hold for the other
    check(fast)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_epoch_goes_on_with_the_same_batches(root: Path, num_workers: int) -> None:
    make_data(root).prepare()
    batches = []
    for options in ({}, {"prepared": False}):
        data = make_data(root, num_workers=num_workers, **options)
        data.resume_at(2)
        batches.append(list(data.train_dataloader()))
    assert len(batches[0]) == 59 // 8 - 2
    for ours, theirs in zip(*batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_copies_may_be_kept_elsewhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("copies")
    make_data(root, prepared=str(place)).prepare()
    assert isinstance(make_data(root, prepared=str(place)).training_set(), PreparedImages)
    assert isinstance(make_data(root).training_set(), ImageFolders)
    with pytest.raises(UserError, match="data.prepared=DIR"):
        make_data(root, prepared=False).prepare()


@pytest.mark.parametrize("change", ["content", "time", "new", "gone", "library"])
def test_a_copy_of_other_files_is_not_used(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    make_data(root).prepare()
    folder = root / "ILSVRC2012/train/n00000003"
    if change == "content":
        write_image(folder / "n00000003_2.JPEG", value=200, size=(30, 30))
    elif change == "time":
        os.utime(folder / "n00000003_2.JPEG", (0, 0))
    elif change == "new":
        write_image(folder / "x.png")
    elif change == "gone":
        (folder / "n00000003_2.JPEG").unlink()
    else:
        monkeypatch.setattr(PIL, "__version__", "0.1")
    with caplog.at_level(logging.INFO, "robustft"):
        images = make_data(root).training_set()
    assert isinstance(images, ImageFolders)
    (message,) = caplog.messages
    assert "imagenet_train: not using the prepared copy" in message and "prepare=true" in message
    assert ("Pillow" in message and "now 0.1" in message) == (change == "library")
    make_data(root).prepare()
    renewed = make_data(root).training_set()
    assert isinstance(renewed, PreparedImages)
    assert_same(renewed, images)


def test_a_damaged_image_is_told_and_mended(root: Path) -> None:
    make_data(root).prepare()
    before = state(root / TRAIN)
    shard = shard_path(root / TRAIN, 3)
    flip_bit(shard)
    data = make_data(root, num_workers=1)
    data.verify()
    with pytest.raises(UserError, match=rf"{shard}: wrong checksum of n00000006/.* prepare=true mends it"):
        list(data.train_dataloader())
    with pytest.raises(UserError, match=f"imagenet_train: cannot read {shard}: wrong checksum"):
        check(data)
    make_data(root).prepare()
    after = state(root / TRAIN)
    assert {path for path in after if before[path] != after[path]} <= {shard, root / TRAIN / "index.safetensors"}
    assert_same(make_data(root).training_set(), make_data(root, prepared=False).training_set())


@pytest.mark.parametrize("damage", ["short", "gone", "index"])
def test_what_is_missing_is_found_before_anything_is_read(root: Path, damage: str) -> None:
    make_data(root).prepare()
    path = root / TRAIN / "index.safetensors" if damage == "index" else shard_path(root / TRAIN, 1)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"damaged: {path}"):
        make_data(root).verify()
    make_data(root).prepare()
    assert_same(make_data(root).training_set(), make_data(root, prepared=False).training_set())


def test_a_finished_copy_is_left_as_it_is(root: Path) -> None:
    make_data(root).prepare()
    before = state(root / "prepared")
    make_data(root).prepare()
    assert state(root / "prepared") == before


def test_a_lossy_copy_is_near_for_training_and_exact_for_evaluation(root: Path) -> None:
    with pytest.raises(UserError, match="data.lossy=true needs a prepared copy"):
        make_data(root, lossy=True).training_set()
    make_data(root, lossy=True).prepare()
    lossy, exact = make_data(root, lossy=True), make_data(root, prepared=False)
    images, files = lossy.training_set(), exact.training_set()
    assert images.identity() != files.identity()
    for i in range(len(files)):
        assert (images[i][0].float() - files[i][0].float()).abs().mean() < 3
    assert_same(lossy.evaluation_set("objectnet").dataset, exact.evaluation_set("objectnet").dataset)
    assert isinstance(make_data(root).training_set(), ImageFolders)  # never taken without being asked for
    with pytest.raises(UserError, match="data.prepared=false"):
        make_data(root, lossy=True, prepared=False).training_set()


def test_an_unreadable_image_is_named(root: Path) -> None:
    path = root / "ILSVRC2012/train/n00000003/n00000003_2.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=f"Cannot read the image {path}"):
        make_data(root).prepare()
    assert isinstance(make_data(root).training_set(), ImageFolders)


def test_a_disk_that_is_too_small(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(UserError, match="data.lossy=true"):
        make_data(root).prepare()


def test_one_preparation_at_a_time(root: Path) -> None:
    with locked(root / "prepared/prepare"), pytest.raises(UserError, match="another process"):
        make_data(root).prepare()


def test_a_disk_that_is_full_keeps_what_is_complete(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def full(source: Path, path: Path) -> None:
        if path.name == "index.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match="No space left on device .* MB are free.*the same command goes on"):
            make_data(root).prepare()
    before = state(root)
    assert list((root / "prepared").rglob("shard-*")) and not list((root / "prepared").rglob("*.partial"))
    make_data(root).prepare()
    assert before.items() <= state(root).items()


def test_where_there_is_no_pread(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_data(root).prepare()
    monkeypatch.delattr(os, "pread")
    assert_same(make_data(root).training_set(), make_data(root, prepared=False).training_set())


# Killed at random times


def start(files: ImageFolders, place: Path) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=run, args=(files, place))
    process.start()
    return process


def run(files: ImageFolders, place: Path) -> None:
    torch.set_num_threads(1)
    prepare({"some": files}, place)


@pytest.mark.parametrize("kills", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_killed_at_random_times_and_started_again(tmp_path: Path, kills: int) -> None:
    """Seen after every kill: there is no copy yet, or a right one; and what was finished is kept to the end."""
    for k in range(4):
        for i in range(50):
            write_image(tmp_path / f"files/{k}/{i:02}.png", value=50 * k + i)
    files = ImageFolders(tmp_path / "files", list("0123"), PREPROCESS)
    started = time.perf_counter()
    whole = start(files, tmp_path / "whole")
    whole.join()
    duration = time.perf_counter() - started
    assert whole.exitcode == 0

    chance, place, killed, finished = random.Random(0), tmp_path / "copies", 0, {}
    while killed < kills:
        process = start(files, place)
        process.join(chance.uniform(0, 1.1 * duration / 3))
        killed += process.exitcode is None
        process.kill()
        process.join()
        copy = open_copy("some", files, place)
        found = state(place).items()  # what lies in a place aside is not finished
        shards = {path: inode for path, inode in found if path.match("some-*/shard-*.safetensors")}
        assert finished.items() <= shards.items()
        finished = shards
        if isinstance(copy, PreparedImages):
            assert_same(copy, files)
            shutil.rmtree(place)
            finished = {}
    last = start(files, place)
    last.join()
    assert last.exitcode == 0
    copy = open_copy("some", files, place)
    assert isinstance(copy, PreparedImages)
    assert_same(copy, files)
    assert finished.items() <= state(place).items()
    names = sorted(path.name for path in copy.folder.iterdir())
    assert names == ["index.safetensors", *(f"shard-{k:05}.safetensors" for k in range(25))]
    for name in names:
        assert (copy.folder / name).read_bytes() == (tmp_path / "whole" / copy.folder.name / name).read_bytes()


def test_models_of_other_transforms_have_copies_of_their_own(root: Path) -> None:
    """Squashed and cropped images: other folders, other identities, the pixels of their files."""
    made = {}
    for name, more in {"": {}, "-squash": {"resize": "squash"}, "-0.9": {"crop": 0.9}}.items():
        transform = replace(PREPROCESS, **more)
        make_data(root, preprocess=transform).prepare()
        assert (root / f"{TRAIN}{name}").is_dir()
        copy = make_data(root, preprocess=transform).training_set()
        files = make_data(root, preprocess=transform, prepared=False).training_set()
        assert isinstance(copy, PreparedImages) and torch.equal(copy[3][0], files[3][0])
        made[copy.identity()] = copy[3][0]
    assert len(made) == 3
