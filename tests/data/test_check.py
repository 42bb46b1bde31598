import shutil
from pathlib import Path

import pytest

from robustft.common.errors import UserError
from robustft.data.check import check, inspect

from .conftest import make_data


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
    assert message.endswith("3 problem(s) found.")
    assert "imagenet_a" in capsys.readouterr().out


def test_sets_left_out_are_not_looked_for(root: Path) -> None:
    shutil.rmtree(root / "imagenet-r")
    assert "imagenet_r" not in inspect(make_data(root, sets={"imagenet_r": False})).sets
