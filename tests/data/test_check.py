import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustft.common.errors import UserError
from robustft.data.check import check, known_leaks
from robustft.data.check_page import write_page
from robustft.data.duplicates import nearest
from robustft.data.inspection import inspect, remarks
from robustft.data.own.folders import FolderImages

from .conftest import make_data
from .own import OPTIONS


def picture(number: int) -> Image.Image:
    """Coarse blots, as photographs have: their hashes tell them apart."""
    blots = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((120, 120), Image.Resampling.BICUBIC)


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_a_good_root_is_a_subset_of_the_published_sets(root: Path, capsys: pytest.CaptureFixture) -> None:
    record = check(make_data(root))
    assert list(record) == [
        "imagenet_train",
        "imagenet",
        "imagenet_v2",
        "imagenet_r",
        "imagenet_sketch",
        "objectnet",
        "imagenet_a",
    ]
    assert (
        record["imagenet_train"].items()
        >= {
            "path": str(root / "ILSVRC2012/train"),
            "classes": 12,
            "images": 60,
            "official": 1_281_167,
            "damaged": {},
            "error": None,
        }.items()
    )
    printed = capsys.readouterr().out
    assert "imagenet_sketch" in printed and "of 1,281,167" in printed
    assert all(line.strip() for line in printed.splitlines())  # nothing of a bar, where there is no terminal


def test_all_that_is_wrong_is_told_at_once(root: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.rmtree(root / "imagenet-r")
    (root / "imagenet-sketch/dog").mkdir()
    broken = root / "ILSVRC2012/val/n00000003/val_3.JPEG"
    content = bytearray(broken.read_bytes())
    content[len(content) // 2 :] = content[-2:]  # the end is that of a JPEG, the middle is missing
    broken.write_bytes(content)
    with pytest.raises(UserError) as error:
        check(make_data(root))
    message = str(error.value)
    assert "imagenet_r: not found" in message and str(root / "imagenet-r") in message
    assert "no class (dog)" in message
    assert f"imagenet: cannot read {broken}: " in message
    assert message.endswith("3 problems found.")
    assert "imagenet_a" in capsys.readouterr().out


def test_sets_left_out_are_not_looked_for(root: Path) -> None:
    shutil.rmtree(root / "imagenet-r")
    assert "imagenet_r" not in inspect(make_data(root, sets={"imagenet_r": False})).sets


def test_images_that_sets_share_are_named(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    """A copy, a copy at another size and quality, and a picture of the hold-out: each is found where it lies."""
    pytest.importorskip("imagehash")
    monkeypatch.setenv("ROBUSTFT_CACHE", str(tmp_path / "cache"))
    for k, kind in enumerate(("cat", "dog")):
        for i in range(10):
            picture(100 * k + i).save(make_folder(tmp_path / "train" / kind) / f"{i}.png")
        for i in range(3):
            picture(1000 + 100 * k + i).save(make_folder(tmp_path / "shift" / kind) / f"{i}.png")
            picture(2000 + 100 * k + i).save(make_folder(tmp_path / "val" / kind) / f"{i}.png")
    places = {"train": str(tmp_path / "train"), "val": str(tmp_path / "val")}

    def data() -> FolderImages:
        return FolderImages(**OPTIONS, **places, shifts={"drawn": str(tmp_path / "shift")}, holdout=4)

    assert known_leaks(data()) is None
    check(data(), tmp_path)
    assert "LEAK" not in capsys.readouterr().out and known_leaks(data()) == {"holdout": 0, "val": 0, "drawn": 0}

    made = data()
    train, held = (made.training_set().key(int(made.split[part][0])) for part in (0, 1))
    shutil.copy(tmp_path / "train" / train, tmp_path / "shift" / "cat" / "copy.png")
    with Image.open(tmp_path / "train" / train) as image:
        image.resize((90, 90)).save(tmp_path / "val" / "cat" / "smaller.jpg", quality=80)
    shutil.copy(tmp_path / "train" / held, tmp_path / "shift" / "dog" / "held.png")
    assert known_leaks(data()) is None  # other images than those that were checked
    looked = inspect(data())
    found = {key: [(Path(looked.paths[key[0]][p.ours]).name, p.distance is None) for p in pairs]
             for key, pairs in looked.leaks.items()}  # fmt: skip
    assert found == {
        ("drawn", "train"): [("copy.png", True)],
        ("val", "train"): [("smaller.jpg", False)],
        ("drawn", "holdout"): [("held.png", True)],
        ("drawn", "val"): [("copy.png", False)],
    }
    check(data(), tmp_path)
    assert "LEAK: 1 image of val in train too (0 the same file, 1 nearly the same)" in capsys.readouterr().out
    assert known_leaks(data()) == {"holdout": 0, "val": 1, "drawn": 1}
    page = (tmp_path / "check.html").read_text()
    assert page.count("<img") == 8 and "smaller.jpg" in page and "<script" not in page


def test_odd_images_and_skew_are_told(tmp_path: Path) -> None:
    for i in range(9):
        picture(i).save(make_folder(tmp_path / "cat") / f"{i}.png")
    for i in range(3):
        picture(50 + i).save(make_folder(tmp_path / "<b>dog") / f"{i}.png")
    picture(70).resize((20, 40)).save(tmp_path / "cat" / "tiny.png")
    picture(71).save(tmp_path / "cat" / "other.jpg", "PNG")
    looked = inspect(FolderImages(**OPTIONS, train=str(tmp_path), val_share=0.1))
    odd = {Path(path).name: what for found in looked.sets.values() for path, what in found["odd"].items()}
    assert odd == {"tiny.png": "tiny: 20 × 40 pixels", "other.jpg": "a PNG file called other.jpg"}
    assert any("its largest class has" in line for line in remarks(looked))
    page = write_page(tmp_path / "check.html", looked).read_text()
    assert "<b>dog" not in page and "tiny.png" in page


def test_bands_find_all_that_a_comparison_of_all_pairs_finds() -> None:
    random = np.random.default_rng(0)
    ours = random.integers(-(2**63), 2**63 - 1, 300, np.int64)
    flips = [sum(1 << int(bit) for bit in random.choice(64, n % 7, replace=False)) for n in range(300)]
    theirs = (ours.view(np.uint64) ^ np.array(flips, np.uint64)).view(np.int64)
    found = {i: bits for i, _, bits in nearest(ours, theirs)}
    assert found == {i: i % 7 for i in range(300) if i % 7 <= 4}
