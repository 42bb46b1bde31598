"""Augmentation: what is drawn depends on seed, epoch and image alone; without it nothing changes."""

import inspect

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.data.augment import Augment, AugmentedImages
from robustft.data.datamodule import RobustnessData
from robustft.data.prepared import PreparedImages
from robustft.data.sets import EvaluationSet, Preprocess, TensorImages

from .conftest import make_data, root  # noqa: F401 (a fixture)

CROP = Augment((0.3, 1.0), flip=0.5)


class Trainer:
    """As much of Lightning's as the data asks."""

    def __init__(self, rank: int = 0, world_size: int = 1, accumulate: int = 1, epoch: int = 0) -> None:
        self.global_rank, self.world_size, self.accumulate_grad_batches = rank, world_size, accumulate
        self.current_epoch = epoch
        self.strategy = type("S", (), {"root_device": torch.device("cpu")})


def pixels(root, epoch: int = 0, worlds: int = 1, **options) -> dict[int, torch.Tensor]:  # noqa: F811
    """Every training image of an epoch as it is given, by its position."""
    found = {}
    for rank in range(worlds):
        data = make_data(root, holdout=12, **options)
        data.augment = CROP
        data.trainer = Trainer(rank, worlds, epoch=epoch)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            found |= dict(zip(batch.indices.tolist(), batch.images, strict=True))
    return found


def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


def test_draws_depend_on_seed_epoch_and_image_alone(root) -> None:  # noqa: F811
    first = pixels(root)
    assert len(first) == 48
    assert same(first, pixels(root, num_workers=2))
    assert same(first, pixels(root, batch_size=16))
    assert same(first, pixels(root, worlds=2))
    for other in (pixels(root, epoch=1), pixels(root, seed=1, holdout_seed=0)):
        assert first.keys() == other.keys() and not same(first, other)


def test_workers_that_stay_see_the_next_epoch(root) -> None:  # noqa: F811
    data = make_data(root, holdout=12, num_workers=1)
    data.augment = CROP
    loader, epochs = data.train_dataloader(), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append({i: image for b in loader for i, image in zip(b.indices.tolist(), b.images, strict=True)})
    assert same(epochs[1], pixels(root, epoch=1)) and not same(*epochs)


def test_a_crop_comes_from_the_image_and_not_from_its_prepared_copy(root) -> None:  # noqa: F811
    before = pixels(root)
    make_data(root).prepare()
    assert isinstance(make_data(root).training_set(), PreparedImages)
    assert same(pixels(root), before)


def test_the_lossy_copy_and_augmentation_exclude_each_other(root) -> None:  # noqa: F811
    make_data(root, lossy=True).prepare()
    data = make_data(root, lossy=True)
    data.augment = CROP
    with pytest.raises(UserError, match="data.lossy=true.*augment"):
        data.train_dataloader()


def test_the_crop_is_torchvisions() -> None:
    """The same numbers from the same generator."""
    image = Image.effect_noise((60, 40), 80).convert("RGB")
    torch.manual_seed(5)
    theirs = v2.RandomResizedCrop(16, scale=(0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC)(image)
    ours = Augment((0.08, 1.0))(image, 16, torch.Generator().manual_seed(5))
    assert torch.equal(ours, v2.functional.pil_to_tensor(theirs))


def test_a_draw_leaves_the_global_generator_alone() -> None:
    image = torch.randint(0, 255, (3, 20, 20), dtype=torch.uint8)
    state = torch.random.get_rng_state()
    Augment((0.1, 1), 0.5, operations=2)(image, 8, generator("test", 1))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_flips_have_their_probability(flip: float) -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, :4] = 200
    left = [bool(Augment((1, 1), flip)(image, 8, generator("test", i))[0, 4, 0] < 100) for i in range(300)]
    assert sum(left) / 300 == pytest.approx(flip, abs=0.1)


@pytest.mark.parametrize("scale", [[0.5], [0.9, 0.1], [0, 1], [0.5, 1.5]])
def test_a_scale_that_is_none(scale: list[float]) -> None:
    with pytest.raises(UserError, match="augment.scale=.*smallest and the largest"):
        Augment(scale)


def test_data_that_keep_no_originals_are_refused() -> None:
    class Bare(TensorImages):
        original = property()  # type: ignore[assignment]

    class Data(RobustnessData):
        name, class_names, templates = "bare", ["a", "b"], ["{}"]

        def training_set(self):
            return Bare(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.arange(8) % 2)

        def evaluation_sets(self):
            keys = [str(i) for i in range(8)]
            return [EvaluationSet("bare", self.training_set(), torch.eye(2, dtype=torch.bool), keys)]

    half = (0.5, 0.5, 0.5)
    data = Data(preprocess=Preprocess(4, half, half), seed=0, batch_size=2, eval_batch_size=2, holdout=2)
    assert not data.augments
    data.augment = CROP
    assert data.augments
    with pytest.raises(UserError, match="augment: Bare keeps no images"):
        data.train_dataloader()


def test_arguments_are_the_settings_of_the_group() -> None:
    import yaml

    from robustft.cli.sources import CONF

    arguments = set(inspect.signature(Augment).parameters)
    for path in (CONF / "augment").glob("*.yaml"):
        settings = set(yaml.safe_load(path.read_text())) - {"kind", "takes", "defaults"}
        assert settings <= arguments, path
    assert AugmentedImages.__doc__
