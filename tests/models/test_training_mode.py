"""A tower that has batch normalisation, dropout or stochastic depth is trained without: see docs/models.md."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from robustft.data.sets import Batch, Preprocess
from robustft.methods.counterfactual import CounterfactualFinetune
from robustft.models.classifier import Architecture, Classifier
from robustft.models.open_clip_private import build_tower
from tests.models.test_private_names import RESNET, VIT
from tests.small import prepared, trained, work  # noqa: F401 (a fixture)

CONVNEXT = {"timm_model_name": "test_convnext", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
TOWERS = {
    "RN50": ({"embed_dim": 16, "vision_cfg": RESNET}, 64),
    "ConvNeXt": ({"embed_dim": 16, "vision_cfg": {**CONVNEXT, "timm_drop_path": 0.5, "image_size": 48}}, 64),
    "CLIP, patches dropped": ({"embed_dim": 16, "vision_cfg": {**VIT, "patch_dropout": 0.5}}, 32),
    "timm's ViT": ({"drop_path_rate": 0.5, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3}, 32),
}
NO_MASK = dict.fromkeys(("threshold", "rate", "cam", "source", "layers")) | {"kind": "none"}


def tower(name: str) -> nn.Module:
    config, side = TOWERS[name]
    torch.manual_seed(0)
    if "vision_cfg" in config:
        return build_tower(config)
    sizes = {"img_size": side, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    return VisionTransformer(**sizes, **config)


def pair(name: str) -> tuple[Classifier, Classifier, Batch]:
    side = TOWERS[name][1]
    visual: Any = tower(name)
    with torch.no_grad():  # as trained weights are: at the beginning ConvNeXt's blocks add next to nothing
        for weight in visual.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    images = torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        width = visual.eval()(images).shape[1]
    visual.train()
    half = (0.5,) * 3
    student = Classifier(visual, nn.Linear(width, 3), Architecture(name, {}, Preprocess(side, half, half)))
    return student, deepcopy(student), Batch(images, torch.arange(6) % 3, torch.arange(6))


@pytest.mark.parametrize("name", TOWERS)
def test_a_student_begins_as_its_teachers_twin(name: str) -> None:
    """The distillation term of the first step is exactly 0 where nothing is masked, and statistics stay."""
    student, teacher, batch = pair(name)
    method = CounterfactualFinetune(student, teacher, beta=1.0, mask=NO_MASK, fill="none").train()
    before = {key: value.clone() for key, value in student.named_buffers()}
    loss = method.training_step(batch, 0)
    assert float(method.terms["distance"]) == 0 and float(method.terms["ce"]) > 0
    loss.backward()
    assert all(torch.equal(value, before[key]) for key, value in student.named_buffers())
    assert method.training and student.training and not any(m.training for m in student.visual.modules())


@pytest.mark.parametrize("name", TOWERS)
def test_an_image_has_its_features_in_any_batch(name: str) -> None:
    student, _, batch = pair(name)
    student.train()
    together, alone = student.encode(batch.images), student.encode(batch.images[:1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_otherwise_it_would_not_be_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training mode these towers say something else: that the tests above are tests."""
    monkeypatch.setattr(Classifier, "train", nn.Module.train)
    student, teacher, batch = pair(name)
    method = CounterfactualFinetune(student, teacher, beta=1.0, mask=NO_MASK, fill="none").train()
    method.training_step(batch, 0)
    assert float(method.terms["distance"]) > 1e-6


def test_a_run_trains_it_so(work) -> None:  # noqa: F811
    """Under Lightning too, evaluations between the steps included: weights move, running statistics do not."""
    run = prepared(work / "bn", "method=finetune", "trainer.max_epochs=2", "model.pretrained=null")
    half = (0.5,) * 3
    side = run.data.preprocess.size
    visual: Any = build_tower({"embed_dim": 16, "vision_cfg": {**RESNET, "image_size": 48}})
    described = Architecture("rn", {}, Preprocess(48, half, half))
    run.zeroshot = Classifier(visual, nn.Linear(16, len(run.data.class_names)), described).eval()
    run.data.preprocess = described.preprocess
    assert side != 48
    before = deepcopy(run.zeroshot)
    made = trained(run)
    assert all(torch.equal(value, dict(before.named_buffers())[key]) for key, value in made.named_buffers())
    assert not torch.equal(made.visual.conv1.weight, before.visual.conv1.weight)
