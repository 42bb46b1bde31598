import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.transform import image_transform
from PIL import Image

from robustft.common.errors import UserError
from robustft.data.sets import EvaluationSet, Preprocess, TensorImages
from robustft.models.timm_vit import preprocess
from robustft.models.weights import preprocess_in
from robustft.models.zeroshot import preprocess_of

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


@pytest.mark.parametrize("size", [(331, 500), (500, 331), (64, 48), (224, 224)])
def test_squashed_as_open_clip_does(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    ours = Preprocess(48, MEAN, STD, resize="squash")
    reference = image_transform(48, is_train=False, mean=MEAN, std=STD, resize_mode="squash")(image)
    torch.testing.assert_close(ours.normalise(ours.pixels(image)[None])[0], reference, atol=1e-6, rtol=0)
    assert torch.equal(ours.pixels(image), Preprocess(48, MEAN, STD).pixels(image)) == (size == (224, 224))


TIMMS = [
    "vit_small_patch16_224",
    "vit_base_patch16_clip_224.laion2b",
    "resnet50.tv_in1k",
    "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384",
]


@pytest.mark.parametrize("name", TIMMS)
@pytest.mark.parametrize("size", [(331, 500), (500, 331)])
def test_transform_is_timms(name: str, size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    reference = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config.to_dict()))
    ours = preprocess(name)
    torch.testing.assert_close(ours.normalise(ours.pixels(image)[None])[0], reference(image), atol=1e-5, rtol=0)


def test_these_are_transforms_of_every_kind() -> None:
    kinds = {(made.resize, made.crop < 1, made.interpolation) for made in map(preprocess, TIMMS)}
    assert kinds >= {("squash", False, "bicubic"), ("shortest", True, "bicubic"), ("shortest", True, "bilinear")}


def test_padded_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = timm.get_pretrained_cfg("vit_small_patch16_224")
    assert known is not None
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: replace(known, crop_mode="border"))
    with pytest.raises(UserError, match="vit_small_patch16_224 pads its images"):
        preprocess("vit_small_patch16_224")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"resize_mode": "longest"})
    with pytest.raises(UserError, match="padded to squares"):
        preprocess_of("ViT-B-16-SigLIP", "webli")


def test_published_preprocessing_by_name_and_tag() -> None:
    """Of SigLIP's weights, of a file of them without a description, and of random ones; OpenAI's stay as they were."""
    for pretrained in ("webli", None, "/nowhere/siglip.pt"):
        made = preprocess_of("ViT-B-16-SigLIP", pretrained)
        assert (made.resize, made.mean, made.interpolation) == ("squash", (0.5,) * 3, "bicubic")
    for pretrained in ("openai", None, "/nowhere/clip.pt"):
        assert preprocess_of("ViT-B-32-quickgelu", pretrained) == Preprocess(224, MEAN, STD)


def test_a_transform_describes_itself() -> None:
    usual, other = Preprocess(48, MEAN, STD), Preprocess(48, MEAN, STD, resize="squash", crop=0.9)
    assert usual.describe() == {"size": 48, "mean": MEAN, "std": STD, "interpolation": "bicubic"}  # as ever
    for made in (usual, other):
        assert preprocess_in({"preprocess": json.dumps(made.describe())}) == made
    assert repr(usual) == "Preprocess(size=48, mean=" + repr(MEAN) + ", std=" + repr(STD) + ", interpolation='bicubic')"


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
