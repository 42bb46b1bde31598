"""CAR-FT, Lipsum-FT and LDIFS: against the public implementations, and what they are when they do nothing."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.counterfactual.distillation import between_directions
from robustft.counterfactual.fill import Counterfactual
from robustft.data.sets import Batch
from robustft.methods.carft import CARFT, context_divergence
from robustft.methods.ldifs import states_distance
from robustft.methods.lipsum import text_difference
from robustft.models.frozen_text import FrozenText, frozen_text
from robustft.models.plain import PlainTower
from robustft.models.text_tower import TextTower
from robustft.models.tiny import tokenizer
from robustft.models.tower import quarters
from tests.golden.neighbours import DTYPES, Golden
from tests.small import do, method_of, prepared, work  # noqa: F401 (a fixture)

TEXT = ("model.pretrained=embedded",)
NEIGHBOURS = ["carft", "lipsum", "ldifs"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_context_divergence(dtype) -> None:
    golden = Golden("fdalign", dtype)
    features = golden["image_raw"].requires_grad_()
    loss = context_divergence(features, golden["image_raw_zero_shot"], golden["contexts"])
    golden.close(loss, "carft_kl.loss")
    golden.close(torch.autograd.grad(loss, features)[0], "carft_kl.grad_image_raw")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_text_difference(dtype) -> None:
    """With the published loss around it: a head of unit columns, the scale outside."""
    golden = Golden("lipsum", dtype)
    leaves = {name: golden[name].requires_grad_() for name in ("pooled", "visual_projection_tuned", "head")}
    features = leaves["pooled"] @ leaves["visual_projection_tuned"]
    target = golden["pooled_pretrained"] @ golden["visual_projection"]
    texts = F.normalize(golden["text_pooled"] @ golden["text_projection"], dim=-1)
    scale = torch.tensor(golden["logit_scale"], dtype=dtype).exp()
    regulariser = text_difference(features, target, texts, float(scale))
    golden.close(regulariser, "regulariser")
    golden.close(torch.autograd.grad(regulariser, leaves["pooled"], retain_graph=True)[0], "regulariser.grad_pooled")
    ce = F.cross_entropy(scale * F.normalize(features, dim=-1) @ leaves["head"], golden["labels"])
    golden.close(ce, "nll")
    loss = ce + golden["weight"] * regulariser
    golden.close(loss, "loss")
    for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        golden.close(gradient, f"grad_{name.removesuffix('_tuned')}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_states_distance(dtype) -> None:
    golden = Golden("ldifs", dtype)
    states, logits = golden["student_tokens"].requires_grad_(), golden["logits"].requires_grad_()
    for axis in ("tokens", "channels"):
        distance = states_distance(list(states), list(golden["pretrained_tokens"]), axis)
        golden.close(distance, f"{axis}_axis.distance")
        gradient = torch.autograd.grad(distance, states, retain_graph=True)[0]
        golden.close(gradient, f"{axis}_axis.grad_student_tokens")
        assert states_distance(list(states), list(states.detach()), axis) == 0
    loss = F.cross_entropy(logits, golden["labels"])
    loss = loss + golden["alpha"] * states_distance(list(states), list(golden["pretrained_tokens"]), "tokens")
    golden.close(loss, "total.loss")
    for name, gradient in zip(("logits", "student_tokens"), torch.autograd.grad(loss, [logits, states]), strict=True):
        golden.close(gradient, f"total.grad_{name}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distance_of_directions(dtype) -> None:
    """TRACER's distance of features, that of images and that of texts."""
    golden = Golden("tracer", dtype)
    images, texts = golden["image_raw"].requires_grad_(), golden["text_raw"].requires_grad_()
    loss = between_directions(images, golden["teacher_image_raw"])
    loss = loss + between_directions(texts, golden["teacher_text_raw"])
    golden.close(loss, "fd.loss")
    for name, gradient in zip(("image", "text"), torch.autograd.grad(loss, [images, texts]), strict=True):
        golden.close(gradient, f"fd.grad_{name}_raw")


def test_tokens_that_do_not_exist_count_in_nothing() -> None:
    states, targets = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    hidden = torch.zeros(3, 6, dtype=torch.bool)
    hidden[:, 4:] = True
    for axis in ("tokens", "channels"):
        shorter = states_distance(list(states[:, :, :4]), list(targets[:, :, :4]), axis)
        torch.testing.assert_close(states_distance(list(states), list(targets), axis, hidden), shorter)
        hidden[1, 1:] = True  # few tokens or many: each image counts the same, as on devices of their own
        alone = [
            states_distance([*states[:, k : k + 1]], [*targets[:, k : k + 1]], axis, hidden[k : k + 1])
            for k in range(3)
        ]
        torch.testing.assert_close(
            states_distance(list(states), list(targets), axis, hidden), torch.stack(alone).mean()
        )
        hidden[1, 1:4] = False


class Words(nn.Module):
    """A text tower that gives each text a known embedding."""

    def __init__(self, embeddings: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.known = list(embeddings)
        self.rows = nn.Parameter(torch.stack(list(embeddings.values())))
        self.visual = None

    def forward(self, _, tokens):
        return None, F.normalize(self.rows[tokens[:, 0]], dim=-1)  # as open_clip's forward does


def test_contexts_are_means_over_classes() -> None:
    golden = Golden("fdalign", torch.float32)
    embeddings, scale = golden["prompt_embeddings"], float(torch.tensor(golden["logit_scale"]).exp())
    classes, templates = [f"c{c}" for c in range(5)], [f"t{k} {{}}" for k in range(7)]
    known = {templates[k].format(classes[c]): embeddings[c, k] for c in range(5) for k in range(7)}
    clip = Words(known)
    text = FrozenText(clip, lambda texts: torch.tensor([[clip.known.index(text)] for text in texts]), scale)
    golden.close(text.contexts(classes, templates), "context_weights")


def test_random_texts() -> None:
    """Drawn from all tokens but those of start and end, anew at every step, encoded as open_clip does."""
    text = frozen_text("tiny", None, 0, tokenizer())
    tokens = text.random_tokens(500, 8, generator("test", 0))
    start, end = 1, tokenizer().end
    assert tokens.shape == (500, 10) and set(tokens[:, 0].tolist()) == {start} and set(tokens[:, -1].tolist()) == {end}
    assert set(tokens[:, 1:-1].flatten().tolist()) == set(range(end)) - {start}
    assert not torch.equal(tokens, text.random_tokens(500, 8, generator("test", 1)))
    encoded = text.encode(tokens[:20])
    torch.testing.assert_close(encoded, TextTower(text.clip).encode_text(tokens[:20], normalize=True))
    torch.testing.assert_close(encoded.norm(dim=1), torch.ones(20))
    import open_clip

    clips = open_clip.get_tokenizer("ViT-B-32")
    published = FrozenText(text.clip, clips, 100.0).random_tokens(80, 8, generator("test", 0))
    assert list(published.shape) == [80, Golden("lipsum", torch.float32)["tokens_shape"][1]]
    assert published[:, 0].eq(49406).all() and published[:, -1].eq(49407).all() and published[:, 1:-1].max() < 49406


def test_states_are_those_of_the_blocks() -> None:
    """One forward gives the features, to rounding, and what hooks on the blocks see."""
    from tests.methods.micro import micro

    assert quarters(12) == [3, 6, 9, 12] and quarters(3) == [1, 2, 3] and quarters(1) == [1]
    model, images = micro(0), torch.randn(2, 3, 16, 16)
    seen: list[torch.Tensor] = []
    blocks = PlainTower(model.visual).blocks
    model.visual.ln_pre.register_forward_hook(lambda *a: seen.append(a[-1]))
    for block in blocks:
        block.register_forward_hook(lambda *a: seen.append(a[-1]))
    features, states = model.encode_with_states(images)
    for ours, theirs in zip(states, [seen[0], seen[1], seen[2]], strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(features, model.encode(images))


@pytest.mark.parametrize("method", NEIGHBOURS)
def test_a_weight_of_zero_is_fine_tuning_bit_for_bit(work, method):  # noqa: F811
    own = ["method.unit_head=false"] if method == "lipsum" else []
    do(work / f"{method}-zero", f"method={method}", "beta=0", *own)
    if not (work / "finetune" / "results.json").exists():
        do(work / "finetune", "method=finetune")
    one, other = (load_file(work / name / "model.safetensors") for name in (f"{method}-zero", "finetune"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("method", NEIGHBOURS)
def test_at_the_teacher_the_second_term_is_zero_and_has_no_gradient(work, method):  # noqa: F811
    run = prepared(work / f"{method}-start", f"method={method}")
    system, alone = method_of(run), deepcopy(run["student"])
    system.eval()
    batch = Batch(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3]), torch.arange(4))
    loss = system.training_step(batch, 0)
    ce = F.cross_entropy(alone(batch.images), batch.labels)
    torch.testing.assert_close(loss, ce, rtol=1e-5, atol=1e-6)
    loss.backward()
    ce.backward()
    for ours, theirs in zip(system.student.parameters(), alone.parameters(), strict=True):
        if ours.grad is not None:  # not the bias of Lipsum-FT's head
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4 * float(theirs.grad.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("method", NEIGHBOURS)
@pytest.mark.parametrize("fill", ["single", "none"])
def test_counterfactual_images_under_a_moving_teacher(work, method, fill):  # noqa: F811
    """The second term is that of x_cf: what it is on the images as they are is another number."""
    settings = (f"method={method}", "mask=object", f"fill={fill}", "moving=trajectory")
    record = do(work / f"{method}-{fill}", *settings)
    assert record["mask"]["kind"] == "object" and record["fill"] == fill
    run = prepared(work / f"{method}-{fill}-step", *settings)
    system = method_of(run)
    with torch.no_grad():
        for weight in system.student.parameters():
            weight += 0.01 * torch.randn_like(weight)
    batch = Batch(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3]), torch.arange(4))
    system.training_step(batch, 0)
    distance = float(system.terms["distance"])
    seen = []
    make = system.fill
    system.fill = lambda *arguments: seen.append(make(*arguments)) or seen[-1]
    system.training_step(batch, 0)
    with torch.no_grad():
        on_x_cf = system.distance(system.student, system.teacher, seen[0], None)
        on_x = system.distance(system.student, system.teacher, Counterfactual(batch.images), None)
    assert distance == pytest.approx(float(on_x_cf), rel=1e-5) and distance != pytest.approx(float(on_x), rel=1e-4)


def test_the_texts_of_lipsum_are_new_at_every_step_and_shared_by_its_micro_batches(work, monkeypatch):  # noqa: F811
    from robustft.methods.lipsum import LipsumFT

    drawn: list[tuple[int, torch.Tensor]] = []
    step = LipsumFT.training_step

    def spy(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        drawn.append((self.trainer.global_step, self.drawn[1]))
        return loss

    monkeypatch.setattr(LipsumFT, "training_step", spy)
    do(work / "texts", "method=lipsum", "trainer.accumulate_grad_batches=2")
    assert [number for number, _ in drawn] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert all(one is other for (_, one), (_, other) in zip(drawn[::2], drawn[1::2], strict=True))
    assert len({texts.sum().item() for _, texts in drawn}) == 6


def test_the_head_of_lipsum_moves_as_one_of_unit_rows(work):  # noqa: F811
    """One step of AdamW on the published parametrisation, s outside, against ours."""
    run = prepared(work / "head", "method=lipsum", "optimizer.weight_decay=0.1")
    system = method_of(run)
    from robustft.components import make_recipe

    system.recipe = make_recipe(run.cfg)
    scale, start = system.text.scale, system.student.head.weight.detach().clone()
    unit = nn.Parameter(start / scale)
    gradient = torch.randn_like(start)
    groups = system.parameters_to_train()
    ours = torch.optim.AdamW([{**group, "lr": 1e-3 * group.get("lr_scale", 1.0)} for group in groups], weight_decay=0.1)
    theirs = torch.optim.AdamW([unit], lr=1e-3, weight_decay=0.1)
    system.student.head.weight.grad, unit.grad = gradient, scale * gradient
    ours.step()
    theirs.step()
    torch.testing.assert_close(system.student.head.weight, scale * unit, rtol=1e-5, atol=1e-7)
    assert not any(system.student.head.bias is p for group in groups for p in group["params"] if p.requires_grad)


def test_one_context_is_nothing_to_compare(work) -> None:  # noqa: F811
    run = prepared(work / "one-context", "method=carft", *TEXT)
    contexts = torch.randn(1, 96)
    with pytest.raises(UserError, match="there is one alone: give several"):
        CARFT(run.student(), run.student(), contexts, beta=1.0, mask={"kind": "none"}, fill="none")
    CARFT(run.student(), run.student(), contexts, beta=0.0, mask={"kind": "none"}, fill="none")


def test_a_head_without_bias_loses_none(work) -> None:  # noqa: F811
    run = prepared(work / "unit-head", "method=lipsum", *TEXT)
    start = run.student()
    with torch.no_grad():
        start.head.bias.fill_(0.5)  # the same for all classes: it changes no probability
    run._makers["student"] = lambda: start
    assert not method_of(run).student.head.bias.any()
    with torch.no_grad():
        start.head.bias[0] = 1.0
    with pytest.raises(UserError, match="Add method.unit_head=false"):
        method_of(run)
    run.cfg.method.unit_head = False
    assert method_of(run).student.head.bias[0] == 1.0


def test_the_published_head_decays_as_its_unit_rows_do(work) -> None:  # noqa: F811
    method = method_of(prepared(work / "decay", "method=lipsum", *TEXT))
    group = method.parameters_to_train()[1]
    assert group["lr_scale"] * group["decay_scale"] == pytest.approx(1.0)
    expected = method.recipe.adam["weight_decay"] * group["decay_scale"]
    assert group["weight_decay"] == pytest.approx(expected)
