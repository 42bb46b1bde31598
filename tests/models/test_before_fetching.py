"""What a model of each family cannot do is refused before its weights, or anything else, is fetched."""

from functools import partial
from typing import Any

import open_clip
import pytest

from robustft.common.errors import UserError
from robustft.models import timm_vit, zeroshot
from robustft.models.classifier import check_can
from tests.models.test_private_names import RESNET
from tests.models.test_training_mode import CONVNEXT

WORDS, TEMPLATES = ["fish", "boat"], ["a {}"]
RESNET_CAN = r"mask=none, mask.cam=gradcam, mask=random, fill=single, multi$"
MADE: dict[str, dict[str, Any]] = {
    "RN50": {"embed_dim": 16, "vision_cfg": RESNET, "text_cfg": {}},
    "convnext_base": {"embed_dim": 16, "vision_cfg": {**CONVNEXT, "image_size": 64}, "text_cfg": {}},
    "EVA02-B-16": {
        "embed_dim": 16,
        "vision_cfg": {
            "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": "linear", "image_size": 224,
        },
        "text_cfg": {},
    },
}  # fmt: skip


@pytest.fixture
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(what: str, *_: Any, **__: Any) -> None:
        pytest.fail(f"{what} was fetched first")

    monkeypatch.setattr(zeroshot, "create_clip", partial(fetch, "a CLIP"))
    monkeypatch.setattr(open_clip, "get_tokenizer", partial(fetch, "a tokenizer"))


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("RN50", ("object", "relevance", "single"), f"has no attention.*{RESNET_CAN}"),
        ("RN50", ("random", None, "none"), f"has no sequence of patches.*{RESNET_CAN}"),
        ("convnext_base", ("object", "relevance", "single"), f"has no attention.*{RESNET_CAN}"),
        ("EVA02-B-16", ("random", None, "single"), "has no patches.*It can do: mask=none$"),
    ],
)
def test_of_open_clip(nothing_is_fetched, monkeypatch, name, asked, said):
    monkeypatch.setattr(zeroshot, "model_config", lambda _: MADE[name])
    tag = open_clip.list_pretrained_tags_by_model(name)[0]
    with pytest.raises(UserError, match=f"^{name} .*{said}") as error:
        zeroshot.zeroshot_classifier(name, tag, WORDS, TEMPLATES, check=lambda model: check_can(model, *asked))
    assert "\n" not in str(error.value)


def test_of_timm(monkeypatch):
    built = []
    build = timm_vit.build
    monkeypatch.setattr(
        timm_vit, "build", lambda name, pretrained, seed: built.append(pretrained) or build(name, None, 0)
    )
    with pytest.raises(UserError, match="eva02_tiny_patch14_224 .Eva. has no patches.*It can do: mask=none$"):
        zeroshot.zeroshot_classifier(
            "eva02_tiny_patch14_224", "timm", WORDS, TEMPLATES, backbone="timm",
            check=lambda model: check_can(model, "object", "gradcam", "single"),
        )  # fmt: skip
    assert built == [None]


def test_a_tokenizer_that_is_missing_is_told_before_weights_are_fetched(monkeypatch):
    """Of SigLIP, whose tokenizer lies on a hub."""

    def absent(*_: Any, **__: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(zeroshot, "create_clip", lambda *_: pytest.fail("the weights were fetched first"))
    monkeypatch.setattr(open_clip, "get_tokenizer", absent)
    monkeypatch.setattr(zeroshot, "model_config", lambda _: MADE["RN50"])
    with pytest.raises(UserError, match="tokenizer of ViT-B-16-SigLIP could not be fetched .no connection."):
        zeroshot.zeroshot_classifier("ViT-B-16-SigLIP", "webli", WORDS, TEMPLATES)
