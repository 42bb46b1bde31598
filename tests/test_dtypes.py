"""A loaded model in other number types, copied, stored, compiled."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor

from robustft.counterfactual.cam import gradcam, relevance
from robustft.models import tiny
from robustft.models.classifier import Classifier
from robustft.models.zeroshot import zeroshot_classifier

# What rounding to the type leaves of logits up to 30, and of maps up to 1.
LOGITS = {torch.float16: 0.02, torch.bfloat16: 0.2, torch.float64: 1e-4}
MAPS = {torch.float16: 0.02, torch.bfloat16: 0.2, torch.float64: 1e-4}


@pytest.fixture(scope="module")
def model() -> Classifier:
    classes, templates = ["fish", "boat", "tree"], ["a photo of a {}"]
    return zeroshot_classifier("tiny", "embedded", classes, templates, tokenizer=tiny.tokenizer())


@pytest.fixture(scope="module")
def images(model: Classifier) -> Tensor:
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return model.normalise(pixels)


@pytest.mark.parametrize("fed", ["float32", "its own"])
@pytest.mark.parametrize("dtype", LOGITS, ids=str)
def test_every_floating_type_works(model: Classifier, images: Tensor, dtype: torch.dtype, fed: str) -> None:
    other = copy.deepcopy(model).to(dtype)
    x = images if fed == "float32" else images.to(dtype)
    logits = other(x)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), model(images), rtol=0, atol=LOGITS[dtype])
    labels = torch.tensor([0, 1, 2, 0])
    for explain in (relevance, gradcam):
        _, logits, cam = explain(other, x, labels)
        _, expected, map_in_float = explain(model, images, labels)
        torch.testing.assert_close(logits.float(), expected, rtol=0, atol=LOGITS[dtype])
        torch.testing.assert_close(cam.float(), map_in_float, rtol=0, atol=MAPS[dtype])
    masked = torch.rand(4, 64, generator=torch.Generator().manual_seed(1)) > 0.5
    for given in ({"masked": masked}, {"kept": torch.arange(9).expand(4, 9)}):
        features = other.encode(x, **given)
        expected = model.encode(images, **given)
        assert torch.nn.functional.cosine_similarity(features.float(), expected).min() > 0.999
    assert other.classify(model.encode(images)).dtype == dtype  # features of another model
    other.encode(x).sum().backward()


@pytest.mark.slow
def test_copies_stored_models_and_compiled_ones_are_the_same(model: Classifier, images: Tensor) -> None:
    expected = model(images)
    assert torch.equal(copy.deepcopy(model)(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), expected)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    assert torch.equal(torch.load(stored, weights_only=False)(images), expected)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(images), expected, rtol=0, atol=1e-5)


def test_pixels_that_are_not_normalised_are_refused(model: Classifier) -> None:
    with pytest.raises(Exception, match="u8|uint8|Byte"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
