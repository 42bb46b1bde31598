"""The evaluation on a GPU: what it counts is what the CPU counts, and no batch waits for it."""

import pytest
import torch

from tests.evaluation.test_metrics import NAMES
from tests.gpu import checks
from tests.gpu.test_step import exact, no_waiting  # noqa: F401 (a fixture)

# Of equal probabilities counts and confidences are the same bits. What is made of them first differs by an operation's
# rounding: a logarithm, and a sum of seven squares.
ROUNDING = {"nll": 1e-6, "brier": 1e-6}


@pytest.mark.parametrize("name", NAMES)
def test_metrics(name):
    here, there = checks.measured(name, "cuda", around=no_waiting), checks.measured(name, "cpu")
    assert here == pytest.approx(there, rel=0, abs=ROUNDING.get(name, 0))


def test_an_evaluation(tmp_path):
    """Of logits around 20 the seventh digit is the device's own."""
    there, here = checks.evaluated(tmp_path / "cpu", "cpu"), checks.evaluated(tmp_path / "gpu", "gpu")
    for name, logits in there.logits.items():
        torch.testing.assert_close(here.logits[name], logits, rtol=1e-4, atol=1e-3)
        best = logits.topk(2).values
        sure = best[:, 0] - best[:, 1] > 2e-3
        assert torch.equal(here.predictions[name][sure], there.predictions[name][sure]) and sure.float().mean() > 0.9
        torch.testing.assert_close(here.details[name], there.details[name], rtol=1e-3, atol=1e-3)
        for metric in ("nll", "brier", "ece"):
            assert here.scores[name].more[metric] == pytest.approx(there.scores[name].more[metric], abs=1e-2), metric
