"""The maps against plain implementations in float64: all attention matrices in a list, the whole matrix R."""

import pytest
import torch
import torch.nn.functional as F

from robustft.bench import direct
from robustft.counterfactual.cam import gradcam, make_cam, relevance
from tests.counterfactual.conftest import Scene


@pytest.mark.parametrize("layers", [None, 1, 2, 3, 99])
def test_relevance_is_that_of_the_whole_matrix(scene: Scene, layers: int | None) -> None:
    features, logits, cam = relevance(scene.student, scene.x, scene.y, layers)
    plain = direct.DirectClassifier.like(scene.student).double()
    expected = direct.relevance(plain, scene.x.double(), scene.y, layers)
    torch.testing.assert_close(cam.double(), expected, rtol=0, atol=1e-5)
    assert (cam >= 0).all() and (cam <= 1).all() and (cam.amax(1) > 0.9).all()
    expected = plain.classify(plain.encode(scene.x.double()))
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(logits, scene.student.classify(features))


def test_fewer_layers_make_another_map(scene: Scene) -> None:
    whole, last = (relevance(scene.student, scene.x, scene.y, layers)[-1] for layers in (None, 1))
    assert (whole - last).abs().max() > 0.01


def test_gradcam_by_its_formula(scene: Scene) -> None:
    plain = direct.DirectClassifier.like(scene.student).double()
    seen = []
    plain.visual.transformer.resblocks[-1].ln_1.register_forward_hook(lambda *args: seen.append(args[-1]))
    logits = plain.classify(plain.encode(scene.x.double()))
    (gradient,) = torch.autograd.grad(logits[torch.arange(len(scene.y)), scene.y].sum(), seen[0])
    expected = torch.einsum("bc,bnc->bn", gradient.sum(1), seen[0])[:, 1:].relu()
    expected = expected / (expected.amax(1, keepdim=True) + 1e-8)
    torch.testing.assert_close(gradcam(scene.student, scene.x, scene.y)[-1].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["relevance", "gradcam"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_forward_pass_serves_the_loss_too(scene: Scene, kind: str, checkpointing: bool) -> None:
    student = scene.student
    student.visual.set_grad_checkpointing(checkpointing)
    _, logits, _ = make_cam(kind)(student, scene.x, scene.y)
    assert all(weight.grad is None for weight in student.parameters())  # the map needs none
    F.cross_entropy(logits, scene.y).backward()
    ours = {name: weight.grad for name, weight in student.named_parameters()}
    student.zero_grad()
    student.visual.set_grad_checkpointing(False)
    F.cross_entropy(student(scene.x), scene.y).backward()
    for name, weight in student.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, msg=name)


@pytest.mark.parametrize("kind", ["relevance", "gradcam"])
def test_checkpointing_changes_no_map(scene: Scene, kind: str) -> None:
    expected = make_cam(kind)(scene.student, scene.x, scene.y)[-1]
    scene.student.visual.set_grad_checkpointing(True)
    assert torch.equal(make_cam(kind)(scene.student, scene.x, scene.y)[-1], expected)


@pytest.mark.parametrize("kind", ["relevance", "gradcam"])
def test_a_frozen_model_and_no_grad_give_the_same_map(scene: Scene, kind: str) -> None:
    expected = make_cam(kind)(scene.student, scene.x, scene.y)[-1]
    scene.student.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(make_cam(kind)(scene.student, scene.x, scene.y)[-1], expected)


def test_the_backward_pass_stops_at_the_last_layers(scene: Scene) -> None:
    reached = []

    def watch(index: int):
        def after(_block: object, _inputs: object, output: torch.Tensor) -> None:
            output.register_hook(lambda _: reached.append(index))

        return after

    blocks = scene.student.tower.blocks[:-1]  # of the last one only the class token is computed
    hooks = [block.register_forward_hook(watch(index)) for index, block in enumerate(blocks)]
    relevance(scene.student, scene.x, scene.y, layers=2)
    assert reached == [2]
    reached.clear()
    relevance(scene.student, scene.x, scene.y)
    assert reached == [2, 1, 0]
    assert all(block.attn.watcher is None for block in scene.student.tower.blocks)
    for hook in hooks:
        hook.remove()
