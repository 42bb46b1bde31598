"""TPGM against the public implementation, and on models."""

import pytest
import torch
import torch.nn.functional as F

from robustft.data.sets import Batch
from robustft.methods.tpgm import Radii, projected
from tests.golden.neighbours import DTYPES, Golden
from tests.methods.micro import micro, same_bits
from tests.small import do, work  # noqa: F401 (a fixture)

EMPTY = Batch(torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", ["l2", "mars"])
def test_radii(length: str, dtype) -> None:
    golden = Golden("tpgm", dtype)
    names = golden["names"]
    starts, tuned = ({name: golden[f"{what}.{name}"] for name in names} for what in ("anchor", "tuned"))
    x, y = golden["x"], golden["y"]

    def loss(weights, _) -> torch.Tensor:
        return F.cross_entropy(torch.tanh(x @ weights["w1"].T + weights["b1"]) @ weights["w2"].T, y)

    def at(radii: torch.Tensor) -> Radii:
        made = Radii(starts, tuned, length)
        made.radii = {name: radius.clone().requires_grad_() for name, radius in zip(names, radii, strict=True)}
        return made

    given = at(golden["radii" if length == "l2" else "radii_mars"])
    value = loss(given.weights(), None)
    golden.close(value, f"{length}.loss")
    golden.close(torch.stack(torch.autograd.grad(value, list(given.radii.values()))), f"{length}.grad_radii")
    golden.close(torch.stack(list(given.radii.values())), f"{length}.radii_after_clip")
    for name, weight in given.weights().items():
        golden.close(weight, f"{length}.projected.{name}")
    if length == "l2":
        outside = at(golden["radii_outside"])
        for name, weight in outside.weights().items():
            golden.close(weight, f"l2.projected_outside.{name}")
        golden.close(torch.stack(list(outside.radii.values())), "l2.radii_outside_after_clip")
    learnt, path = Radii(starts, tuned, length), []
    for _ in learnt.learn(loss, [EMPTY] * golden["iterations"], golden["proj_lr"]):
        path.append(torch.stack(list(learnt.radii.values())).detach().clone())
    golden.close(torch.stack(path), f"{length}.learnt_radii")
    for name, weight in learnt.weights().items():
        golden.close(weight, f"{length}.learnt.{name}")


def test_a_model_goes_no_further_than_it_went() -> None:
    """Each tensor lies between the two models, and the loss on the hold-out has gone down."""
    zeroshot, tuned = micro(0), micro(1)
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 16, 16, generator=random), torch.arange(8) % 3

    def holdout(count: int, size: int):
        assert (count, size) == (60, 8)
        for _ in range(count):
            yield Batch(images, labels, torch.arange(8))

    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    made = projected(zeroshot, tuned, holdout, iterations=60, images=8)
    with torch.no_grad():
        halfway = Radii(dict(zeroshot.named_parameters()), dict(tuned.named_parameters()), "l2").weights()
        loss = F.cross_entropy(torch.func.functional_call(micro(0), halfway, (images,)), labels)
        assert F.cross_entropy(made(images), labels) < loss
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
    shares = []
    for name, weight in made.state_dict().items():
        start, end = zeroshot.state_dict()[name], before[name]
        if start.equal(end):
            assert weight.equal(start)
            continue
        share = float((weight - start).norm() / (end - start).norm())
        assert share <= 1 + 1e-6
        torch.testing.assert_close(weight, start + share * (end - start), rtol=1e-4, atol=1e-6)
        shares.append(share)
    assert max(shares) - min(shares) > 0.05


@pytest.mark.slow
def test_a_run(work) -> None:  # noqa: F811
    from robustft import load

    do(work / "tuned", "method=finetune")
    untrained = ["method=tpgm", f"checkpoint={work}/tuned", "method.iterations=3", "method.images=16"]
    record = do(work / "tpgm", *untrained)
    assert record["display"]["label"] == "TPGM" and record["settings"]["method.iterations"] == 3
    assert do(work / "again", *untrained)["holdout"] == record["holdout"]
    assert same_bits(load(work / "tpgm"), load(work / "again"))
    assert not same_bits(load(work / "tpgm"), load(work / "tuned"))
