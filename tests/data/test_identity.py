"""What is known of images is computed anew when the images are others: they are known by name, size and time."""

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch

from robustft.counterfactual.teacher_maps import teacher_maps
from robustft.data import folders
from robustft.data.sets import Preprocess
from robustft.evaluation.evaluate import zeroshot_scores
from robustft.experiment import make_training, options
from robustft.inputs import Inputs
from robustft.methods.features import encoded
from robustft.methods.lpft import train_head
from robustft.models.zeroshot import preprocess_of
from tests.small import prepared, work  # noqa: F401 (a fixture)

from .conftest import make_data, write_image


def replace_in_place(path: Path, value: int = 250) -> None:
    """Other pixels in the same file: its folder's time stays as it was."""
    before = path.parent.stat().st_mtime_ns
    write_image(path, value, size=(30, 26))
    assert path.parent.stat().st_mtime_ns == before


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def a_run(folder: Path, root: Path, **given) -> Inputs:
    """A run of the tiny model on the images below ``root``."""
    run = prepared(folder, "trainer.max_epochs=1", "method=lpft", "method.probe.epochs=1", "data.num_workers=0")
    preprocess = preprocess_of(run.cfg.model.architecture, None)
    run.data = make_data(root, preprocess=preprocess, holdout=12, holdout_seed=0, **given)
    run.data.setup("validate")
    return run


def score(run: Inputs) -> torch.Tensor:
    scores, _ = zeroshot_scores(run.zeroshot, run.data, options(run.cfg), run.folder)
    return torch.tensor([scores.id.top1, scores.holdout.top1, *(s.top1 for s in scores.ood.values())])


def training(run: Inputs):
    return replace(make_training(run.cfg, run, []), seed=0)


def features(run: Inputs) -> torch.Tensor:
    return encoded(run.student(), training(run)).features


def maps(run: Inputs) -> torch.Tensor:
    return teacher_maps(run.zeroshot, training(run), {"cam": "relevance", "layers": None})


def head(run: Inputs) -> torch.Tensor:
    student = run.student()
    train_head(student, training(run), run.cfg.method.probe)
    return student.head.weight.detach()


TRAIN, VAL = "ILSVRC2012/train/n00000003/n00000003_2.JPEG", "ILSVRC2012/val/n00000003/val_3.JPEG"


@pytest.mark.parametrize(
    ("compute", "folder", "image"),
    [
        (score, "scores", VAL),
        (features, "features", TRAIN),
        (maps, "maps", TRAIN),
        (head, "probes", str(Path(TRAIN).with_name("*.JPEG"))),
    ],
    ids=["zero-shot scores", "features", "teacher maps", "probed heads"],
)
@pytest.mark.parametrize("change", [replace_in_place, touch], ids=lambda change: change.__name__)
def test_what_is_kept_is_not_used_for_other_images(
    root: Path, work: Path, monkeypatch, compute: Callable, folder: str, image: str, change: Callable  # noqa: F811
):  # fmt: skip
    monkeypatch.setenv("ROBUSTFT_CACHE", str(root / "cache"))

    def kept() -> set[Path]:
        return {path for path in (root / "cache" / folder).iterdir() if path.suffix != ".lock"}

    first = compute(a_run(work / "identity", root))
    known = kept()
    assert torch.equal(compute(a_run(work / "identity", root)), first) and kept() == known  # found again
    for path in root.glob(image):
        change(path)
    again = compute(a_run(work / "identity", root))
    assert len(kept()) > len(known)
    if change is touch:  # costs time, and gives the same
        assert torch.equal(again, first)
    elif compute is not score:  # the score of one image of twelve may stay what it was
        assert not torch.equal(again, first)


@pytest.mark.parametrize("library", ["Pillow", "libjpeg", "torchvision"])
def test_the_versions_that_make_the_pixels_belong_to_the_images(root: Path, monkeypatch, library: str):
    def known() -> list[str]:
        data = make_data(root)
        data.setup("validate")
        return [data.training_set().identity(), *(s.fingerprint for s in data.sets)]

    before = known()
    assert known() == before
    if library == "Pillow":
        monkeypatch.setattr(PIL, "__version__", "0.1")
    elif library == "libjpeg":
        monkeypatch.setattr(folders.PIL.features, "version", lambda name: "0.1")
    else:
        monkeypatch.setattr(folders.torchvision, "__version__", "0.1")
    assert not set(known()) & set(before)


@pytest.mark.parametrize("eval_images", [None, 3])
def test_a_selection_knows_its_own_images(root: Path, eval_images):
    """Only they are looked at, and a change of others does not matter."""

    def selection():
        data = make_data(root, holdout=12, eval_images=eval_images)
        data.setup("validate")
        return data, {s.name: s for s in data.sets}

    data, sets = selection()
    before = {name: s.fingerprint for name, s in sets.items()}
    looked_at = (data.training_set()._stamps[:, 0] != folders.UNKNOWN).sum()
    assert looked_at == len(sets["holdout"].dataset) < len(data.training_set())
    held = set(sets["holdout"].keys)
    other = next(k for k in map(data.training_set().key, range(len(data.training_set()))) if k not in held)
    replace_in_place(root / "ILSVRC2012/train" / other)
    assert {name: s.fingerprint for name, s in selection()[1].items()} == before
    replace_in_place(root / "ILSVRC2012/train" / sorted(held)[0])
    changed = {name for name, s in selection()[1].items() if s.fingerprint != before[name]}
    assert changed == {"holdout"}


def test_files_are_looked_at_once_and_workers_do_without(root: Path):
    images = make_data(root).training_set()
    known = images.identity()
    replace_in_place(root / TRAIN)
    assert images.identity() == known != make_data(root).training_set().identity()
    assert pickle.loads(pickle.dumps(images))._stamps is None


def test_a_file_that_is_gone_is_another_image(root: Path):
    images, same = make_data(root).training_set(), make_data(root).training_set()
    known = images.identity()
    (root / TRAIN).unlink()
    assert same.identity() != known


@pytest.mark.parametrize("quick", [0.0, 1000.0], ids=["threads", "one after the other"])
def test_files_of_a_slow_and_of_a_quick_disk_are_told_alike(tmp_path: Path, monkeypatch, quick: float):
    names = [f"{number}.png" for number in range(1500)]
    for number, name in enumerate(names[1:]):
        (tmp_path / name).write_bytes(bytes(number))
    monkeypatch.setattr(folders, "QUICK_LOOK_S", quick)
    labels, preprocess = torch.zeros(1500, dtype=torch.int64), Preprocess(8, (0.5,) * 3, (1.0,) * 3)
    images = folders.ImageFiles(tmp_path, names, labels, preprocess)
    stamps = images.stamps(np.arange(1500))
    assert stamps[0].tolist() == [-1, -1] and stamps[1:, 0].tolist() == list(range(1499))
    assert stamps[1, 1] == (tmp_path / "1.png").stat().st_mtime_ns
