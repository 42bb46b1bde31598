"""What train= leaves to train, and how fast; low-rank updates from their start to the saved model."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from robustft import load
from robustft.common.errors import UserError
from robustft.models.lora import LowRank, add_updates, merge, merged_state, named_weights
from robustft.models.text_tower import TextTower
from robustft.training.moving import MovingAverage
from robustft.training.parts import (
    Head,
    LastBlocks,
    LayerDecay,
    LowRankUpdates,
    NoEmbedding,
    Parts,
    Tower,
    as_groups,
    depths_of,
)
from tests.methods.micro import micro, same_bits
from tests.small import do, work  # noqa: F401 (a fixture)

EMBEDDING = {"class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias"}
AFTER = {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj", "head.weight", "head.bias"}


def trained(parts: Parts) -> set[str]:
    model = micro(0)
    parts.start(model, seed=0)
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_which_weights_are_trained() -> None:
    names = {name for name, _ in micro(0).named_parameters()}
    second = {name for name in names if name.startswith("visual.transformer.resblocks.1.")}
    assert trained(Parts()) == names
    assert trained(Head()) == {"head.weight", "head.bias"}
    assert trained(Tower()) == names - {"head.weight", "head.bias"}
    assert trained(NoEmbedding()) == names - {f"visual.{name}" for name in EMBEDDING}
    assert trained(LastBlocks(0)) == AFTER
    assert trained(LastBlocks(1)) == AFTER | second
    assert trained(LastBlocks(2)) == trained(NoEmbedding())
    with pytest.raises(UserError, match="train.blocks=3: the image tower has 2 blocks"):
        trained(LastBlocks(3))
    low = trained(LowRankUpdates(rank=2, alpha=2.0, mlp=True))
    assert {name for name in low if "parametrizations" not in name} == {"head.weight", "head.bias"}
    assert len(low) - 2 == 2 * 2 * 4  # blocks, matrices of an update, updates of a block
    assert len(trained(LowRankUpdates(rank=2, alpha=2.0, mlp=False))) - 2 == 2 * 2 * 2


def test_what_is_frozen_stays_frozen() -> None:
    for parts in (Parts(), Head(), LastBlocks(1), LowRankUpdates(2, 2.0, True)):
        model = micro(0)
        model.head.requires_grad_(False)
        parts.start(model, seed=0)
        assert not model.head.weight.requires_grad
        assert all(p.requires_grad for group in as_groups(list(model.parameters())) for p in group["params"])


def test_learning_rates_decay_with_depth() -> None:
    model = micro(0)
    groups = [{"params": list(model.visual.parameters())}, {"params": [model.head.weight], "lr_scale": 10.0}]
    made = LayerDecay(0.5).groups(model, as_groups(groups))
    scales = {id(p): group["lr_scale"] for group in made for p in group["params"]}
    expected = {0: 0.125, 1: 0.25, 2: 0.5, 3: 1.0}
    depths, last = depths_of(model)
    assert last == 3 and {depths.get(model.visual.proj, last), depths[model.visual.class_embedding]} == {3, 0}
    for weight in model.visual.parameters():
        assert scales[id(weight)] == expected[depths.get(weight, last)]
    assert scales[id(model.head.weight)] == 10.0 and id(model.head.bias) not in scales
    assert LayerDecay(1.0).groups(model, as_groups(list(model.parameters())))[0]["lr_scale"] == 1.0


def test_low_rank_updates_are_merged_under_the_old_names() -> None:
    model, images = micro(0), torch.randn(2, 3, 16, 16)
    before, expected = deepcopy(model), model(images)
    LowRankUpdates(rank=3, alpha=6.0, mlp=True).start(model, seed=5)
    assert torch.equal(model(images), expected)  # nothing yet
    updates = {name: update for name, update in model.named_modules() if isinstance(update, LowRank)}
    with torch.no_grad():
        for update in updates.values():
            update.b.normal_(generator=torch.Generator().manual_seed(1))
    moved = model(images)
    assert not torch.allclose(moved, expected)
    again = deepcopy(model)  # as a search for a batch size that fits does
    assert torch.equal(again(images), moved)
    state = merged_state(model)
    assert state.keys() == before.state_dict().keys() == {name for name, _ in named_weights(model)}
    for name, update in updates.items():
        place = name.replace("parametrizations.", "").removesuffix(".0")
        exact = before.get_parameter(place).double() + 2.0 * update.b.double() @ update.a.double()
        torch.testing.assert_close(state[place], exact.float())
    merge(model)
    assert same_bits(model, Fake(state)) and torch.equal(model(images), moved)


class Fake(nn.Module):
    """A state dict."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.state = state

    def state_dict(self, *_, **__):
        return self.state


def test_updates_are_those_of_the_seed_and_learn_as_written_out() -> None:
    """Gradients of W₀ + (α/r) B A by the chain rule."""
    torch.manual_seed(0)
    linear, twin = nn.Linear(4, 3), nn.Linear(4, 3)
    twin.load_state_dict(linear.state_dict())
    add_updates([nn.ModuleList([linear])], rank=2, alpha=8.0, seed=1)
    add_updates([nn.ModuleList([twin])], rank=2, alpha=8.0, seed=1)
    update, other = linear.parametrizations.weight[0], twin.parametrizations.weight[0]
    assert torch.equal(update.a, other.a) and not update.b.any()
    with torch.no_grad():
        update.b.normal_()
    x = torch.randn(5, 4)
    F.mse_loss(linear(x), torch.zeros(5, 3)).backward()
    full = 2 * linear(x).detach().T @ x / 15
    torch.testing.assert_close(update.b.grad, 4 * full @ update.a.detach().T)
    torch.testing.assert_close(update.a.grad, 4 * update.b.detach().T @ full)
    assert linear.parametrizations.weight.original.grad is None


def test_an_average_of_low_rank_updates_is_one_of_merged_weights() -> None:
    student = micro(0)
    average = MovingAverage(student, lambda step, steps: 0.25, steps=1)
    start = {name: weight.clone() for name, weight in average.model.named_parameters()}
    LowRankUpdates(2, 2.0, False).start(student, seed=0)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, LowRank):
                module.b.normal_()
    average.update(student)
    for name, weight in named_weights(student):
        expected = start[name] + 0.25 * (weight - start[name])
        torch.testing.assert_close(average.model.get_parameter(name), expected)


@pytest.mark.parametrize("part", ["lora train.rank=4", "last_k train.blocks=1", "layer_decay train.decay=0.5"])
def test_runs(work, part):  # noqa: F811
    """Only what is trained has moved, and the saved model is a plain one."""
    name, *settings = f"train={part}".split()
    record = do(work / part.replace(" ", "-"), "method=kd", name, *settings, "moving=ema")
    assert record["protocol"]["train"] == part.split()[0]
    end, start = load_file(work / part.replace(" ", "-") / "model.safetensors"), load(zeroshot(work)).state_dict()
    assert end.keys() == start.keys()
    moved = {name for name, value in end.items() if not torch.equal(value, start[name])}
    if part.startswith("lora"):
        assert moved and all(name.startswith("head.") or ".resblocks." in name for name in moved)
        assert not any(name.endswith(("ln_1.weight", "c_fc.bias", "in_proj_bias")) for name in moved)
        weight = end["visual.transformer.resblocks.0.mlp.c_fc.weight"]
        change = weight - start["visual.transformer.resblocks.0.mlp.c_fc.weight"]
        assert int(torch.linalg.matrix_rank(change.double(), rtol=1e-3)) <= 4
    elif part.startswith("last_k"):
        assert not any(name in moved for name in start if "resblocks.0." in name or "ln_pre" in name)
        assert "visual.proj" in moved
    else:
        assert moved == set(start)


def zeroshot(work):  # noqa: F811
    if not (work / "zeroshot" / "results.json").exists():
        do(work / "zeroshot", "method=zeroshot")
    return work / "zeroshot"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("method=finetune", "train=last_k", "train.blocks=99"), "train.blocks=99: the image tower has 4 blocks"),
        (("method=finetune", "train=head", "constraint=l2sp", "constraint.head=false"), "L2SP has nothing to hold"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_evaluated(work, monkeypatch, settings, expected):  # noqa: F811
    monkeypatch.setattr("robustft.experiment.zeroshot_scores", lambda *_: pytest.fail("time was spent"))
    with pytest.raises(UserError, match=expected):
        do(work / "refused", "model.pretrained=embedded", *settings)


@pytest.mark.slow
def test_a_start_that_ftp_would_take_back_is_refused(work):  # noqa: F811
    typed = ("method=finetune", "constraint=ftp", "trainer.max_epochs=1")
    do(work / "ftp-start", "method=finetune", "trainer.max_epochs=1")
    start = f"init={work / 'ftp-start'}"
    with pytest.raises(UserError, match="training starts elsewhere .init=.: add constraint.anchor=init"):
        do(work / "ftp-lost", *typed, start)
    do(work / "ftp-kept", *typed, start, "constraint.anchor=init")
    do(work / "ftp", *typed)


def test_towers_of_hugging_face_are_run_as_they_are_evaluated():
    """Dropout would make two passes over one batch differ, and those of a gradient cache have to agree."""

    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer, self.asked = nn.Sequential(nn.Dropout(0.5)), []

        def set_grad_checkpointing(self, enable):
            self.asked.append(enable)

    student = micro(0)
    student.text = nn.Module()
    student.text.text = Elsewhere()
    student.train()
    assert student.training and not student.text.text.transformer[0].training
    tower = TextTower(student.text)
    tower.set_grad_checkpointing(True)
    assert student.text.text.asked == [True]
    with pytest.raises(UserError, match="train=lora updates: leave out train="):
        _ = tower.blocks
