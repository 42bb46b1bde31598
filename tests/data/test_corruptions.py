"""Stand-in shifts: the ID set under standard corruptions."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from robustft.common.errors import UserError
from robustft.data.own.corruptions import KINDS, Corrupted
from robustft.data.own.folders import FolderImages
from robustft.data.sets import TensorImages
from tests.data.own import OPTIONS, write_domains


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_domains(tmp_path_factory.mktemp("images"), domains=("photo",))


def folders(root: Path, **options) -> FolderImages:
    data = FolderImages(**{**OPTIONS, "train": str(root / "photo"), **options})
    data.setup()
    return data


def picture(side: int = 64) -> torch.Tensor:
    """Soft blotches of every brightness: something that every corruption changes."""
    coarse = torch.rand(1, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(0)) * 200
    return F.interpolate(coarse, (side, side), mode="bilinear")[0].byte()


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_is_an_image_and_grows_with_its_severity(kind: str) -> None:
    image = picture(224)
    distances = []
    for severity in range(1, 6):
        torch.manual_seed(0)
        changed = KINDS[kind](image.clone(), severity)
        assert changed.dtype == torch.uint8 and changed.shape == image.shape
        distances.append((changed.float() - image.float()).square().mean().item())
    assert 0 < distances[0] < distances[2] < distances[4]


def test_plain_formulas() -> None:
    image = picture()
    values = image.double() / 255
    noisy = KINDS["gaussian_noise"](torch.full((3, 256, 256), 128, dtype=torch.uint8), 1).double() / 255
    assert abs(noisy.std().item() - 0.08) < 0.001 and abs(noisy.mean().item() - 128 / 255) < 0.001
    faint = (values - values.mean((1, 2), keepdim=True)) * 0.4 + values.mean((1, 2), keepdim=True)
    assert (KINDS["contrast"](image, 1).double() / 255 - faint).abs().max() <= 0.5 / 255 + 1e-6
    top = KINDS["brightness"](image, 2).double().amax(0) / 255
    assert (top - (values.amax(0) + 0.2).clamp(max=1)).abs().max() <= 0.5 / 255 + 1e-6


def test_an_image_is_corrupted_the_same_way_in_any_company() -> None:
    images = TensorImages(torch.stack([picture()] * 3), torch.tensor([0, 1, 0]))
    noisy = Corrupted(images, "gaussian_noise", 3)
    first, again = noisy[1][0], Corrupted(images, "gaussian_noise", 3)[1][0]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert torch.equal(first, again) and not torch.equal(first, noisy[0][0])
    assert torch.equal(torch.random.get_rng_state(), before)  # others' draws are left alone
    assert noisy.identity() != Corrupted(images, "gaussian_noise", 2).identity() != images.identity()


def test_they_are_sets_of_their_own_after_the_natural_ones(root: Path, caplog) -> None:
    write_domains(root / "other", domains=("photo",))
    data = folders(root, corruptions=True, shifts={"mine": str(root / "other" / "photo")}, eval_images=3)
    assert [s.name for s in data.sets] == ["holdout", "val", "mine", *(f"corrupted_{kind}" for kind in KINDS)]
    val, jpeg = data.sets[1], next(s for s in data.sets if s.name == "corrupted_jpeg")
    assert val.keys == jpeg.keys and torch.equal(val.dataset.labels, jpeg.dataset.labels)
    assert not torch.equal(val.dataset[0][0], jpeg.dataset[0][0])
    assert "corruptions of severity 3 as shifts" in data.protocol()["split"]
    assert [s.name for s in folders(root, corruptions=["jpeg"], severity=5).sets][-1] == "corrupted_jpeg"
    with caplog.at_level("INFO", "robustft"):
        folders(root, corruptions=["jpeg"]).verify()
    assert any(message.startswith("no natural shifts") for message in caplog.messages)


def test_unknown_kinds_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match="no 'fog'. There are gaussian_noise, gaussian_blur"):
        folders(root, corruptions=["fog"])
