"""The bodies of the GPU's tests, with the CPU in its place, so that they are right when they are needed."""

from contextlib import nullcontext

import pytest
import torch

from tests.evaluation.test_metrics import NAMES
from tests.gpu import checks

pytestmark = pytest.mark.rehearsal


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_step(precision):
    gradients, loss = checks.compare("tiny", "cpu", precision)
    allowed, of_loss = checks.TOLERANCES[precision]
    assert gradients < allowed and loss < of_loss
    assert (gradients == 0) == (precision == "32-true")


def test_a_wrong_step_is_noticed(monkeypatch):
    expected = checks.step("tiny", "cpu", "32-true")
    monkeypatch.setattr(checks, "BETA", 1.05 * checks.BETA)
    loss, gradients = checks.step("tiny", "cpu", "32-true", around=nullcontext)
    assert abs(loss / expected[0] - 1) > checks.TOLERANCES["32-true"][1]
    worst = max(float((gradients[k] - v).abs().max() / v.abs().max()) for k, v in expected[1].items())
    assert worst > 2e-3


@pytest.mark.parametrize("kind", ["relevance", "gradcam"])
def test_maps(kind):
    cam = checks.maps("tiny", "cpu", kind)
    assert cam.shape == (checks.BATCH, 64) and (cam >= 0).all() and (cam.amax(1) > 0.9).all()


@pytest.mark.parametrize("fill", ["none", "single", "multi"])
def test_masks_and_fills(fill):
    pixels, mask, made = checks.samples("cpu", "object", fill)
    assert torch.equal(made, pixels) == (fill == "none") and 0.5 < mask.float().mean() < 0.9


@pytest.mark.parametrize("name", NAMES)
def test_metrics(name):
    values = checks.measured(name, "cpu")
    assert len(set(values)) > 1 and values == checks.measured(name, "cpu", around=nullcontext)


def test_an_evaluation(tmp_path):
    found = checks.evaluated(tmp_path, "cpu")
    assert set(found.logits) == set(found.details) == set(found.scores) == {s.name for s in found.sets}
    for logits in found.logits.values():
        best = logits.topk(2).values
        assert 1 < best.mean() < 100 and (best[:, 0] - best[:, 1] > 2e-3).float().mean() > 0.9
