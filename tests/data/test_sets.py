import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from robustft.data.sets import EvaluationSet, Preprocess, TensorImages

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize("size", [(331, 500), (500, 331), (64, 48), (224, 224), (225, 231)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA"])
@pytest.mark.parametrize("resolution", [224, 48])
def test_transform_is_open_clips(size: tuple[int, int], mode: str, resolution: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    ours = Preprocess(resolution, MEAN, STD)
    reference = image_transform(resolution, is_train=False, mean=MEAN, std=STD)(image)
    assert ours.pixels(image).dtype == torch.uint8
    torch.testing.assert_close(ours.normalise(ours.pixels(image)[None])[0], reference, atol=1e-6, rtol=0)


def test_bilinear_too() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    ours = Preprocess(32, MEAN, STD, "bilinear")
    reference = image_transform(32, is_train=False, mean=MEAN, std=STD, interpolation="bilinear")(image)
    torch.testing.assert_close(ours.normalise(ours.pixels(image)[None])[0], reference, atol=1e-6, rtol=0)


def test_normalising_serves_training_after_inference_mode() -> None:
    preprocess = Preprocess(2, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    images = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    with torch.inference_mode():
        preprocess.normalise(images)
    weight = torch.ones(1, requires_grad=True)
    (preprocess.normalise(images) * weight).sum().backward()
    assert weight.grad is not None


def a_set(images: int) -> EvaluationSet:
    dataset = TensorImages(torch.zeros(images, 3, 2, 2, dtype=torch.uint8), torch.arange(images) % 3)
    correct = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]]).bool()
    return EvaluationSet("toy", dataset, correct, keys=[f"image {i}" for i in range(images)])


def test_allowed_classes_are_those_that_are_right_for_some_label() -> None:
    assert a_set(3).allowed.tolist() == [True, False, True, True]


def test_a_draw_keeps_labels_and_keys_together() -> None:
    whole = a_set(100)
    drawn = whole.at_most(10)
    assert drawn.partial and not whole.partial and whole.at_most(100) is whole
    assert len(drawn.dataset) == len(drawn.keys) == len(drawn.dataset.labels) == 10
    for i, key in enumerate(drawn.keys):
        image, label, index = drawn.dataset[i]
        assert index == i and key == f"image {drawn.dataset.key(i)}"
        assert label == int(key.split()[1]) % 3 == drawn.dataset.labels[i]
    assert drawn.keys == a_set(100).at_most(10).keys
