"""The evaluation on a GPU: what it counts is what the CPU counts, and no batch waits for it."""

import pytest
import torch

from tests.evaluation.test_metrics import NAMES, cases, made
from tests.gpu.test_step import no_waiting


@pytest.mark.parametrize("name", NAMES)
def test_metrics(name):
    for p, right in cases():
        found = []
        for device in ("cpu", "cuda"):
            metric = made(name)
            metric.start(right.shape[1])
            metric = metric.to(device)
            parts = [(a.to(device), b.to(device)) for a, b in zip(p.float().split(30), right.split(30), strict=True)]
            metric.update(*parts[0])  # the first batch loads kernels
            if device == "cuda":
                with no_waiting():
                    for part in parts[1:]:
                        metric.update(*part)
            else:
                for part in parts[1:]:
                    metric.update(*part)
            found.append(float(metric.compute()))
        # Equal probabilities: counts and sums are the same bits; the logarithm's last digit is the device's own.
        assert found[1] == pytest.approx(found[0], rel=1e-6 if name == "nll" else 0, abs=1e-9 if name == "brier" else 0)


def test_an_evaluation(tmp_path):
    """Logits, predictions and scores of a whole evaluation are the CPU's but for last digits."""
    from robustft.evaluation.evaluate import evaluate
    from robustft.experiment import options
    from robustft.inputs import make_metrics
    from tests.small import prepared

    found = []
    for trainer in ("cpu", "gpu"):
        run = prepared(tmp_path / trainer, "model.pretrained=embedded", f"trainer={trainer}", "trainer.precision=32-true")
        metrics = make_metrics(run.cfg, run)
        more = {"metrics": metrics, "keep_predictions": True, "keep_logits": True}
        found.append(evaluate(run.zeroshot, run.data, options(run.cfg), run.folder, **more))
    here, there = found
    assert here.temperature == pytest.approx(there.temperature, rel=1e-3)
    for name, logits in here.logits.items():
        torch.testing.assert_close(there.logits[name], logits, rtol=1e-3, atol=1e-2)
        assert (there.predictions[name] == here.predictions[name]).float().mean() > 0.9
        assert there.scores[name].more == pytest.approx(here.scores[name].more, abs=0.1)
