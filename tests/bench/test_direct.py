"""The direct step and ours: one loss, the same gradients."""

import pytest
import torch

from robustft.bench import direct
from robustft.bench.steps import Bench
from robustft.data.sets import Batch
from robustft.methods.counterfactual import CounterfactualFinetune

SETTINGS = [  # mask, fill, layers
    ("object", "single", None),
    ("object", "multi", 2),
    ("object", "none", 2),
    ("context", "single", 1),
    ("context", "none", None),
    ("random", "multi", None),
    ("random", "none", None),
]


@pytest.fixture
def bench() -> Bench:
    return Bench("tiny", batch=5, precision="32-true", device="cpu")


@pytest.mark.parametrize(("kind", "fill", "layers"), SETTINGS)
def test_loss_and_gradients(bench: Bench, kind: str, fill: str, layers: int | None) -> None:
    mask = {"kind": kind, "threshold": 0.5, "rate": 0.5, "cam": "relevance", "source": "student", "layers": layers}
    method = CounterfactualFinetune(bench.student, bench.teacher, beta=30.0, mask=mask, fill=fill)
    expected = direct.objective(
        bench.direct_student,
        bench.direct_teacher,
        bench.x,
        bench.y,
        torch.Generator().manual_seed(1),
        mask=method.mask,
        fill=method.fill,
        beta=30.0,
        cam=None if kind == "random" else lambda *seen: direct.relevance(*seen, layers),
    )
    expected.backward()
    for checkpointing in (False, True):
        bench.student.visual.set_grad_checkpointing(checkpointing)
        bench.student.zero_grad()
        method.random = lambda batch_idx: torch.Generator().manual_seed(1)
        loss = method.training_step(Batch(bench.x, bench.y, torch.arange(5)), 0)
        loss.backward()
        torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-5, atol=0)
        for name, theirs in bench.direct_student.named_parameters():
            ours = bench.student.get_parameter(name).grad
            torch.testing.assert_close(ours, theirs.grad, rtol=0, atol=1e-4 * float(theirs.grad.abs().max()), msg=name)


def test_one_backward_pass_or_two(bench: Bench) -> None:
    gradients = []
    for variant in ("exact_fp32", "one_backward_fp32"):
        bench.student.zero_grad()
        bench.backward(variant)()
        gradients.append([weight.grad for weight in bench.student.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_known_maps_are_looked_up(bench: Bench) -> None:
    mask = {"kind": "object", "threshold": 0.3, "rate": None, "cam": "relevance", "layers": None}
    student, teacher, x, y = bench.student, bench.teacher, bench.x, bench.y
    options = {"beta": 30.0, "mask": mask | {"source": "teacher"}, "fill": "single"}
    unknown, known = (CounterfactualFinetune(student, teacher, **options) for _ in range(2))
    cam = unknown.explain(student, teacher, x, y)[-1]
    order = torch.tensor([3, 0, 4, 1, 2])
    known.maps = torch.zeros_like(cam).index_copy(0, order, cam)
    losses = []
    for method in (unknown, known):
        losses.append(method.training_step(Batch(x, y, order), 0).detach())
        assert 0 < method.terms["masked"] < 1
    assert torch.equal(*losses)
