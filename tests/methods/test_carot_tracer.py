"""CaRot and TRACER against their public implementations; their place among the methods that they are made of."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.methods.carot import CaRot, overlap, self_distillation, skewness
from robustft.methods.contrastive import Contrastive
from robustft.methods.tracer import TRACER
from tests.golden.neighbours import DTYPES, Golden
from tests.methods.first_gradients import first_gradients
from tests.methods.test_flyp import FLYP, leaf, tuned, two_processes_against_one
from tests.small import do, method_of, prepared, work  # noqa: F401 (a fixture)
from tests.test_resume import go_on_until_done, same_results, stops  # noqa: F401 (a fixture)

INPUTS = ("image_raw", "text_raw", "logit_scale", "W_v", "W_t")
CAROT, TRACER_ = (f"method={name}" for name in ("carot", "tracer"))
NO_CAROT = (CAROT, "method.weight=0", "method.cross=0", "method.orthogonal=0")
NO_TRACER = (TRACER_, "method.weight=0", "method.cross=0")
# What is left of each method when all weights but one are 0.
ALONE: dict[str, tuple[type[Contrastive], str, dict[str, float]]] = {
    "carot infonce": (CaRot, "infonce", {}),
    "carot cross": (CaRot, "cross", {"cross": 1}),
    "carot orth": (CaRot, "orthogonal", {"orthogonal": 1}),
    "carot sd": (CaRot, "sd", {"weight": 1}),
    "carot total": (CaRot, "loss", {"weight": 1.5, "cross": 0.05, "orthogonal": 0.2}),
    "tracer infonce": (TRACER, "infonce", {}),
    "tracer fd": (TRACER, "fd", {"weight": 1, "features": 1}),
    "tracer crd": (TRACER, "crd", {"weight": 1, "relations": 1}),
    "tracer icl": (TRACER, "icl", {"weight": 1, "interactive": 1}),
    "tracer xkd": (TRACER, "xkd", {"weight": 1, "mixed": 1}),
    "tracer cross": (TRACER, "cross", {"cross": 1}),
    "tracer total": (
        TRACER,
        "loss",
        {"weight": 0.9, "features": 2000, "relations": 1, "interactive": 1, "mixed": 1, "cross": 0.05},
    ),
}
WEIGHTS = {CaRot: ("weight", "cross", "orthogonal")}
WEIGHTS[TRACER] = ("weight", "features", "relations", "interactive", "mixed", "cross")


def made(work, method: type[Contrastive], golden: Golden, weights: dict[str, float]) -> tuple[Any, list[Tensor]]:  # noqa: F811
    """The method with the projections and scales of the golden numbers, and the inputs of its objective."""
    run = prepared(work / "golden", "method=flyp", "beta=1")
    given = dict.fromkeys(WEIGHTS[method], 0.0) | weights
    mask = {"kind": "none", "threshold": None, "rate": None}
    made = method(run["student"], run["teacher"], run.data, mask=mask, fill="none", **given)
    inputs = [nn.Parameter(leaf(golden, name).detach()) for name in INPUTS]
    student = made.student
    student.text.logit_scale, student.visual.proj, student.text.text_projection = inputs[2:]
    if made.teacher is not None:
        made.teacher.text.logit_scale = nn.Parameter(leaf(golden, "teacher_logit_scale").detach())
    return made, inputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ALONE)
def test_a_term_and_its_gradients(work, case: str, dtype: torch.dtype) -> None:  # noqa: F811
    name, term = case.split()
    kind, ours, weights = ALONE[case]
    golden = Golden(name, dtype)
    method, inputs = made(work, kind, golden, weights)
    theirs = {what: golden[f"teacher_{one}_raw"] for what, one in (("images", "image"), ("texts", "text"))}
    labels = torch.arange(len(theirs["images"]))
    found = method.objective({"images": inputs[0], "texts": inputs[1]}, {"labels": labels, **theirs})
    golden.close(found[ours], f"{term}.loss")
    gradients = torch.autograd.grad(found[ours], inputs, allow_unused=True)
    for one, gradient in zip(INPUTS, gradients, strict=True):
        try:
            golden[f"{term}.grad_{one}"]
        except KeyError:  # the term does not depend on it
            assert gradient is None
        else:
            golden.close(gradient, f"{term}.grad_{one}")


def test_self_distillation_of_a_model_from_itself() -> None:
    """It is the entropy of rows plus that of columns, and pulls at nothing."""
    z = torch.randn(6, 6, dtype=torch.float64, generator=generator("test", 1)).requires_grad_()
    found = self_distillation(z, z.detach())
    entropies = [-(p * p.log()).sum(1).mean() for p in (z.softmax(1), z.T.softmax(1))]
    torch.testing.assert_close(found, sum(entropies), rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(found, z)
    assert gradient.abs().max() < 1e-15


def test_the_norms_of_projections() -> None:
    orthonormal, _ = torch.linalg.qr(torch.randn(9, 4, dtype=torch.float64, generator=generator("test", 2)))
    assert skewness(orthonormal) < 1e-14
    assert float(skewness(2 * orthonormal)) == pytest.approx(3 * 4**0.5)
    image, text = orthonormal, torch.randn(5, 4, dtype=torch.float64, generator=generator("test", 3))
    assert float(overlap(image, text)) == pytest.approx(float(text.norm()))


@pytest.mark.slow
@pytest.mark.parametrize("base", [NO_CAROT, NO_TRACER], ids=lambda settings: settings[0])
def test_with_weight_0_they_are_flyp_bit_for_bit(work, base) -> None:  # noqa: F811
    tuned(work)
    record = do(work / base[0], *base, *FLYP[1:])
    ours, flyp = (load_file(work / name / "model.safetensors") for name in (base[0], "tuned"))
    assert ours.keys() == flyp.keys() and all(torch.equal(value, flyp[name]) for name, value in ours.items())
    assert record["protocol"]["head"] == "text"


SAMPLES = {
    "carot": (CAROT,),
    "carot, masked": (CAROT, "mask=object", "fill=none"),
    "tracer": (TRACER_, "method.features=20"),
    "tracer, masked by the teacher's map": (TRACER_, "mask=context", "mask.source=teacher", "fill=none"),
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SAMPLES.values(), ids=list(SAMPLES))
def test_the_gradient_cache_gives_the_gradients_of_the_large_batch(work, settings) -> None:  # noqa: F811
    started = tuned(work)
    found = []
    for accumulate in (1, 4):
        typed = (*settings, f"init={started}", "trainer.max_steps=1", "data.holdout=0")
        run = prepared(work / "cache", *typed, f"trainer.accumulate_grad_batches={accumulate}")
        found.append(first_gradients(run))
    one, four = found
    assert one.keys() == four.keys()
    for name, gradient in one.items():
        assert gradient.abs().max() > 0, name
        assert (gradient - four[name]).abs().max() < 1e-11 * max(1e-2, float(gradient.abs().max())), name


def test_terms_that_ask_for_an_image_s_own_prompt_stay_with_the_image(work) -> None:  # noqa: F811
    """With a mask, everything else is measured on the counterfactual images."""
    run = prepared(work / "terms", TRACER_, "mask=random", "fill=single", f"init={tuned(work)}")
    method = method_of(run)
    run.data.setup()
    method.keep_average(None, 1)
    batch = run.data.training_set().__getitems__(list(range(16)))
    batch = batch._replace(images=run.zeroshot.preprocess.normalise(batch.images))
    pairs = method._on_device(method.pairs(batch))
    sample, ours, theirs = method.see(pairs, method.random(0))
    assert not torch.equal(sample.images, pairs.images)
    student, teacher = method.student, method.teacher
    with torch.no_grad():
        expected = {
            "images": student.encode(pairs.images),
            "counterfactuals": student.encode(*sample),
        }
        assert all(torch.allclose(ours[name], value, atol=1e-5) for name, value in expected.items())
        assert torch.allclose(theirs["images"], teacher.encode(*sample), atol=1e-5)
        assert torch.allclose(theirs["factual"], teacher.encode(pairs.images), atol=1e-5)
        terms = method.objective(ours, theirs)
        u, u_cf, v = (F.normalize(ours[name], dim=-1) for name in ("images", "counterfactuals", "texts"))
        t, t_cf, w = (F.normalize(theirs[name], dim=-1) for name in ("factual", "images", "texts"))
        s, s_teacher = student.scale, teacher.scale
        fd = ((u_cf - t_cf) ** 2).mean() + ((v - w) ** 2).mean()
        own = torch.arange(16)
        icl = (F.cross_entropy(s * u @ w.T, own) + F.cross_entropy(s * v @ t.T, own)) / 2
        p, q = (s_teacher * t_cf @ w.T).softmax(1), (s_teacher * w @ t_cf.T).softmax(1)
        crd = sum(
            (a * (a.log() - b.log_softmax(1))).sum(1).mean() / 2 for a, b in ((p, s * u_cf @ v.T), (q, s * v @ u_cf.T))
        )
        xkd = sum(
            (a * (a.log() - b.log_softmax(1))).sum(1).mean() / 2 for a, b in ((p, s * u_cf @ w.T), (q, s * v @ t_cf.T))
        )
        infonce = (F.cross_entropy(s * u @ v.T, own) + F.cross_entropy(s * v @ u.T, own)) / 2
    for name, value in (("fd", fd), ("icl", icl), ("crd", crd), ("xkd", xkd), ("infonce", infonce)):
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)


def test_the_teacher_of_tracer_is_the_average_of_the_trajectory(work) -> None:  # noqa: F811
    """Of both towers, by the weights' own sum."""
    from dataclasses import replace

    from robustft.experiment import make_training
    from robustft.training.loop import train
    from robustft.training.moving import trajectory

    run = prepared(work / "trajectory", TRACER_, "method.features=20")
    method = method_of(run)
    seen = [{name: p.detach().clone() for name, p in method.student.named_parameters()}]
    method.after_step = lambda: seen.append({n: p.detach().clone() for n, p in method.student.named_parameters()})
    train(method, replace(make_training(run.cfg, run, [])))
    average = dict(method.moving_average.model.named_parameters())
    kept = 1.0
    weights = []
    for step in reversed(range(6)):
        weights.insert(0, kept * trajectory(step, 6))
        kept *= 1 - trajectory(step, 6)
    for name in ("text.token_embedding.weight", "visual.proj", "text.logit_scale"):
        expected = sum(w * one[name].double() for w, one in zip([kept, *weights], seen, strict=True))
        torch.testing.assert_close(average[name].double(), expected, rtol=1e-5, atol=1e-6)
        assert (average[name] - seen[-1][name]).abs().max() > 0
    assert method.teacher is method.moving_average.model


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [(CAROT, "mask=random", "fill=multi"), (TRACER_, "trainer.accumulate_grad_batches=2")],
    ids=lambda settings: settings[0],
)
def test_stopped_at_every_point(work, stops, settings) -> None:  # noqa: F811
    seen, wanted = stops
    folder = work / f"stopping-{settings[0].removeprefix('method=')}"
    expected = do(folder, *settings, "trainer.max_steps=4")
    points = list(dict.fromkeys(seen))
    stopped = folder.with_name(f"{folder.name}-stopped")
    assert go_on_until_done(stopped, (*settings, "trainer.max_steps=4"), wanted, points) == expected["holdout"]
    assert same_results(folder, stopped)


def test_a_tower_without_a_projection_is_refused(work) -> None:  # noqa: F811
    run = prepared(work / "bare", "method=flyp", "beta=1")
    student, mask = run["student"], {"kind": "none", "threshold": None, "rate": None}
    student.visual.proj = None
    with pytest.raises(UserError, match="tiny .VisionTransformer. has no projection of its image features"):
        CaRot(student, run["teacher"], run.data, mask=mask, fill="none", weight=1, cross=0.1, orthogonal=0)


def test_results_say_what_they_are(work) -> None:  # noqa: F811
    folder = work / "said"
    record = do(folder, CAROT, "mask=object", "trainer.max_steps=2")
    assert record["display"]["label"] == "CaRot, object mask, single-fill"
    assert record["settings"]["method.weight"] == 1.5 and record["settings"]["moving.every"] == 0.02
    assert record["beta"] is None and record["mask"]["kind"] == "object"
    assert json.loads((folder / "results.json").read_text())["protocol"]["train"] == "all"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(CAROT,), (TRACER_, "mask=object", "fill=none")], ids=lambda s: s[0])
def test_two_processes_give_the_gradients_of_one(work, tmp_path, settings) -> None:  # noqa: F811
    two_processes_against_one(tmp_path, *settings, f"init={tuned(work)}")
