"""The encoder's shortcuts change no number."""

import pytest
import torch
from torch import Tensor

from robustft.bench import direct
from robustft.counterfactual.mask import random_mask
from robustft.models.activation import QuickGELU
from robustft.models.attention import attend
from tests.counterfactual.conftest import Scene


def test_features_are_those_of_the_untouched_tower(scene: Scene) -> None:
    plain = direct.DirectClassifier.like(scene.student)
    torch.testing.assert_close(scene.student.encode(scene.x), plain.visual(scene.x), rtol=0, atol=1e-5)
    assert scene.student.state_dict().keys() == plain.state_dict().keys()


def test_dropped_and_hidden_patches_are_the_same(scene: Scene) -> None:
    masked = random_mask(len(scene.x), scene.student.patches, 0.5, torch.Generator().manual_seed(0), exact=True)
    kept = (~masked).nonzero()[:, 1].view(len(masked), -1)
    dropped, hidden = scene.student.encode(scene.x, kept=kept), scene.student.encode(scene.x, masked)
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=1e-5)
    assert (dropped - scene.student.encode(scene.x)).abs().max() > 1e-3


@pytest.mark.parametrize("hidden", [False, True])
def test_attention_in_bfloat16_on_cpus(hidden: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 10, 16, requires_grad=True) for _ in range(3))
    bias = torch.zeros(3, 1, 1, 10).masked_fill(torch.rand(3, 1, 1, 10) < 0.5, -torch.inf) if hidden else None
    if bias is not None:
        bias[..., 0] = 0
    gradient = torch.randn(3, 2, 10, 16)

    def run(dtype: torch.dtype) -> list[Tensor]:
        out = attend(q.to(dtype), k.to(dtype), v.to(dtype), None if bias is None else bias.to(dtype))
        return [out.float(), *torch.autograd.grad(out, (q, k, v), gradient.to(dtype))]

    for ours, exact in zip(run(torch.bfloat16), run(torch.float32), strict=True):
        assert (ours - exact).norm() < 0.01 * exact.norm()


def test_quick_gelu_and_its_derivative() -> None:
    x = torch.linspace(-9, 9, 101, dtype=torch.float64, requires_grad=True)
    expected = x * torch.sigmoid(1.702 * x)
    torch.testing.assert_close(QuickGELU()(x), expected)
    (ours,), (theirs,) = (torch.autograd.grad(y.sum(), x) for y in (QuickGELU()(x), expected))
    torch.testing.assert_close(ours, theirs)


def test_a_teacher_in_low_precision_says_what_autocast_would_have_made_it_say(scene: Scene) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = scene.teacher.encode(scene.x)
        scene.teacher.keep_in(torch.bfloat16)
        assert torch.equal(scene.teacher.encode(scene.x), expected)
    assert scene.teacher.visual.proj.dtype == torch.float32


def test_checkpointing_keeps_less(scene: Scene) -> None:
    def kept_bytes() -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scene.student.encode(scene.x)
        return sum(kept.values())

    before = kept_bytes()
    scene.student.visual.set_grad_checkpointing(True)
    assert kept_bytes() < before / 2
