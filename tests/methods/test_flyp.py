"""FLYP against its public implementation and a plain loop; whole batches in micro-batches and over devices."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import robustft
from robustft.cli import checks
from robustft.common.errors import UserError
from robustft.common.randomness import generator
from robustft.data.scenes import ScenesData
from robustft.experiment import make_training
from robustft.methods.flyp import info_nce, similarities
from robustft.models import tiny
from robustft.models.prompts import Prompts, part_of
from robustft.models.text_tower import TextTower
from robustft.models.weights import create_clip
from robustft.models.zeroshot import text_rows
from robustft.training.loop import train
from tests.golden.neighbours import DTYPES, Golden
from tests.methods.first_gradients import FILE, first_gradients
from tests.small import ROOT, command, composed, do, method_of, prepared, work  # noqa: F401 (a fixture)
from tests.test_resume import go_on_until_done, same_results, stops  # noqa: F401 (a fixture)
from tests.test_training import counts, difference

CLASSES = ["fish", "boat", "tree", "snow"]
TEMPLATES = ["a photo of a {}.", "a sketch of a {} on the grass", "the {}."]
FLYP = ("method=flyp", "optimizer.lr=1e-4")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positives", ["diagonal", "class"])
def test_the_loss_and_its_gradients(positives: str, dtype: torch.dtype) -> None:
    golden = Golden("flyp", dtype)
    names = ["image_raw", "text_raw", "logit_scale"]
    images, texts, log_scale = (leaf(golden, name) for name in names)
    z = similarities(images, texts, log_scale.exp())
    loss = info_nce(z, golden["labels"] if positives == "class" else None)
    golden.close(loss, f"{positives}.loss")
    for name, gradient in zip(names, torch.autograd.grad(loss, (images, texts, log_scale)), strict=True):
        golden.close(gradient, f"{positives}.grad_{name}")


def leaf(golden: Golden, name: str) -> torch.Tensor:
    """An input, to take gradients with respect to."""
    return torch.as_tensor(golden[name], dtype=golden.dtype).clone().requires_grad_()


def test_with_different_labels_class_positives_are_the_diagonal() -> None:
    z = torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(info_nce(z, torch.randperm(7)), info_nce(z), rtol=1e-14, atol=0)
    same = info_nce(z, torch.zeros(7, dtype=torch.int64))
    torch.testing.assert_close(same, -(z.log_softmax(1).mean() + z.log_softmax(0).mean()) / 2, rtol=1e-14, atol=0)


def prompts(cut: bool = True) -> Prompts:
    return Prompts(tiny.tokenizer(), CLASSES, TEMPLATES, cut)


def test_prompts_are_chosen_once_and_cut_at_the_longest() -> None:
    """ "a photo of a fish" has 5 words, "the fish" 2, and each a token at either end."""
    labels, templates = torch.tensor([0, 1, 0, 0]), torch.tensor([2, 0, 2, 2])
    tokens, which = prompts().choose(labels, templates)
    assert tokens.shape == (2, 7) and which.tolist() == [0, 1, 0, 0]
    texts = [TEMPLATES[t].format(CLASSES[c]) for c, t in zip(labels, templates, strict=True)]
    whole = tiny.tokenizer()(texts)
    assert torch.equal(F.pad(tokens, (0, 5))[which], whole)
    assert prompts(cut=False).choose(labels, templates).tokens.shape == (2, 12)
    assert prompts().choose(torch.tensor([3]), torch.tensor([2])).tokens.shape == (1, 4)


@pytest.mark.parametrize("kind", ["tiny", "apart", "as SigLIP's"])
def test_cut_prompts_equal_whole_ones_with_their_gradients(kind: str) -> None:
    from tests.counterfactual.test_towers import text_clip

    clip = create_clip("tiny", None, 3) if kind == "tiny" else text_clip("causal, apart" if kind == "apart" else kind)
    clip = clip.double()
    tower = TextTower(clip)
    tokens, which = prompts(tower.can_be_cut).choose(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2]))
    if kind != "tiny":  # whose vocabulary is smaller
        tokens = tokens.clamp(max=49)
    target = torch.randn(3, clip.visual.output_dim, dtype=torch.float64)
    whole = F.pad(tokens, (0, 12 - tokens.shape[1]))
    texts = [clip.encode_text(whole)[which], tower.encode(tokens)[which]]
    towers = [p for n, p in clip.named_parameters() if not n.startswith(("visual.", "logit_"))]
    gradients = [torch.autograd.grad((text * target).sum(), towers) for text in texts]
    assert (tokens.shape[1] < 12) == tower.can_be_cut
    torch.testing.assert_close(texts[1], texts[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)


def test_a_renewed_head_is_the_zero_shot_head_to_the_bit() -> None:
    clip = create_clip("tiny", "embedded", 0)
    rows = text_rows(clip, tiny.tokenizer(), CLASSES, TEMPLATES)
    assert torch.equal(prompts().rows(clip), rows)


@pytest.mark.parametrize("devices", [1, 2, 3, 7])
def test_devices_share_out_the_classes_of_a_head(devices: int) -> None:
    names = [f"{colour} {one}" for colour in ("red", "green", "blue") for one in CLASSES]
    assert len(names) > 8  # more than are encoded together, twice
    many, clip = replace(prompts(), class_names=names), create_clip("tiny", "embedded", 0)
    parts = [part_of(len(names), number, devices) for number in range(devices)]
    assert [number for part in parts for number in part] == list(range(len(names)))
    assert max(map(len, parts)) == len(parts[0])
    rows = torch.cat([many.rows(clip, part) for part in parts if part])
    assert torch.equal(rows, many.rows(clip))


def plain_flyp(run, steps: int, by_class: bool = False) -> open_clip.CLIP:
    """FLYP as one reads it, with open_clip's own CLIP, whole prompts and whole batches, in float64."""
    cfg, data = run.cfg, run.data
    data.setup()
    clip = create_clip("tiny", cfg.model.pretrained, cfg.seed).double().train()
    optimizer = torch.optim.AdamW(clip.parameters(), lr=cfg.optimizer.lr, weight_decay=cfg.optimizer.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=cfg.optimizer.lr, total_steps=steps, pct_start=cfg.optimizer.warmup
    )
    indices, images, size = data.split[0], data.training_set(), cfg.data.batch_size
    for step in range(steps):
        epoch, place = divmod(step, len(indices) // size)
        order = indices[torch.randperm(len(indices), generator=generator("order of images", cfg.seed, epoch))]
        batch = images.__getitems__(order[place * size : (place + 1) * size].tolist())
        drawn = torch.randint(
            len(data.templates), (len(images),), generator=generator("templates of images", cfg.seed, epoch)
        )
        chosen = zip(batch.labels.tolist(), drawn[batch.indices].tolist(), strict=True)
        tokens = tiny.tokenizer()([data.templates[t].format(data.class_names[c]) for c, t in chosen])
        u, v, scale = clip(run.zeroshot.preprocess.normalise(batch.images).double(), tokens)
        z, targets = scale * u @ v.T, torch.eye(size, dtype=torch.float64)
        if by_class:
            targets = (batch.labels[:, None] == batch.labels).double()
            targets /= targets.sum(1, keepdim=True)
        loss = -((targets * z.log_softmax(1)).sum() + (targets * z.T.log_softmax(1)).sum()) / (2 * size)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return clip.eval()


@pytest.mark.parametrize("positives", ["diagonal", "class"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_against_a_plain_loop(work, positives: str, accumulate: int) -> None:  # noqa: F811
    """In four micro-batches too: the loss is of the whole batch, to rounding in float64."""
    settings = (*FLYP, f"method.positives={positives}", f"trainer.accumulate_grad_batches={accumulate}")
    run = prepared(work / f"plain-{positives}-{accumulate}", *settings, "trainer.check_val_every_n_epoch=9")
    expected = plain_flyp(run, steps=6, by_class=positives == "class")
    start = create_clip("tiny", None, 0).state_dict()
    model = train(method_of(run).double(), make_training(run.cfg, run, [])).model
    made = model.state_dict()
    for name, value in expected.state_dict().items():
        ours = made[name if name.startswith("visual.") else f"text.{name}"]
        assert (value - start[name]).abs().max() > 1e-5, name
        assert difference(name, ours, value) < 1e-9, name
    with torch.no_grad():  # the head is made of the tuned text tower, at the end too
        columns = open_clip.build_zero_shot_classifier(
            expected, tiny.tokenizer(), list(run.data.class_names), list(run.data.templates)
        )
        torch.testing.assert_close(model.head.weight, expected.logit_scale.exp() * columns.T, rtol=1e-4, atol=1e-4)


# Masks and fills that make of an image the same whatever the others of its micro-batch are.
SAMPLES = {
    "contrastive loss alone": (),
    "class positives": ("method.positives=class",),
    "images as they are": ("beta=3",),
    "masked, left out": ("beta=3", "mask=object", "fill=none"),
    "masked by the teacher's map": ("beta=3", "mask=context", "mask.source=teacher", "mask.cam=gradcam", "fill=none"),
}


@pytest.mark.parametrize("settings", SAMPLES.values(), ids=list(SAMPLES))
def test_the_gradient_cache_gives_the_gradients_of_the_large_batch(work, settings) -> None:  # noqa: F811
    """Four micro-batches against one batch, for every tensor."""
    started = tuned(work)  # a student away from its teacher
    found = []
    for accumulate in (1, 4):
        typed = (*FLYP, *settings, f"init={started}", "trainer.max_steps=1", "data.holdout=0")
        run = prepared(work / "cache", *typed, f"trainer.accumulate_grad_batches={accumulate}")
        found.append(first_gradients(run))
    one, four = found
    assert one.keys() == four.keys() and "text.logit_scale" in one and "text.transformer.resblocks.0.ln_1.bias" in one
    for name, gradient in one.items():
        assert gradient.abs().max() > 0, name
        assert (gradient - four[name]).abs().max() < 1e-11 * max(1e-2, float(gradient.abs().max())), name


@pytest.mark.parametrize("left", [1, 2])
def test_what_is_left_over_of_an_epoch_is_a_batch_of_its_own(work, left: int) -> None:  # noqa: F811
    """One micro-batch of four that are accumulated had a quarter of its gradient, two had all of it."""
    started = tuned(work)
    found = []
    for size, accumulate, limit in ((16, 4, left), (4 * left, 1, 1)):
        typed = (*FLYP, "beta=3", f"init={started}", "trainer.max_steps=1", "data.holdout=0")
        typed += (f"data.batch_size={size}", f"trainer.limit_train_batches={limit}")
        run = prepared(work / "left", *typed, f"trainer.accumulate_grad_batches={accumulate}")
        found.append(first_gradients(run))
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).abs().max() < 1e-11 * max(1e-2, float(gradient.abs().max())), name


def tuned(work) -> str:  # noqa: F811
    """The file of a model that FLYP has trained."""
    if not (work / "tuned").exists():
        do(work / "tuned", *FLYP)
    return str(work / "tuned" / "model.safetensors")


@pytest.mark.slow
def test_fills_from_other_images_work_in_micro_batches(work) -> None:  # noqa: F811
    record = do(work / "filled", *FLYP, "beta=1", "mask=object", "trainer.accumulate_grad_batches=2")
    assert record["mask"]["kind"] == "object" and record["fill"] == "single" and record["beta"] == 1
    assert record["display"]["label"] == "FLYP, object mask, single-fill"
    assert len(list((work / "filled" / "gallery").glob("*.png"))) > 0


def test_the_model_loads_into_open_clip_and_evaluates_as_it_did(work) -> None:  # noqa: F811
    path = tuned(work)
    record = json.loads((work / "tuned" / "results.json").read_text())
    state = load_file(path)
    clip = create_clip("tiny", None, 7)
    head = {name: state.pop(name) for name in ("head.weight", "head.bias")}
    clip.load_state_dict(state)  # strictly
    columns = open_clip.build_zero_shot_classifier(
        clip, tiny.tokenizer(), list(ScenesData.class_names), list(ScenesData.templates)
    )
    with torch.no_grad():
        torch.testing.assert_close(head["head.weight"], clip.logit_scale.exp() * columns.T, rtol=1e-4, atol=1e-4)
        model = robustft.load(work / "tuned")
        tokens = tiny.tokenizer()(["a photo of a fish."])
        torch.testing.assert_close(model.encode_text(tokens), clip.encode_text(tokens), rtol=1e-4, atol=1e-5)
    again = do(work / "again", "method=evaluate", f"checkpoint={path}")
    assert all(again[key] == record[key] for key in ("id", "ood", "holdout", "zeroshot"))
    assert load_file(work / "again" / "model.safetensors").keys() == load_file(path).keys()
    assert record["protocol"]["head"] == again["protocol"]["head"] == "text"


@pytest.mark.slow
def test_it_is_a_start_and_a_checkpoint_for_other_methods(work) -> None:  # noqa: F811
    path = tuned(work)
    do(work / "on", "method=finetune", f"init={path}")
    assert all(name.startswith(("visual.", "head.")) for name in load_file(work / "on" / "model.safetensors"))
    do(work / "zeroshot", "method=wiseft", f"checkpoint={path}", "alpha=0")
    do(work / "tuned1", "method=wiseft", f"checkpoint={path}", "alpha=1")
    do(work / "between", "method=wiseft", f"checkpoint={path}", "alpha=0.4")
    zero, one, between = (load_file(work / name / "model.safetensors") for name in ("zeroshot", "tuned1", "between"))
    assert all(torch.equal(value, one[name]) for name, value in load_file(path).items())
    clip = create_clip("tiny", None, 0).state_dict()
    assert all(torch.equal(zero[name], value) for name, value in clip.items())
    for name, value in clip.items():
        expected = 0.6 * value.double() + 0.4 * one[name].double()
        assert torch.equal(between[name], expected.float())
    clip = create_clip("tiny", None, 0)
    clip.load_state_dict({name: between[name] for name in clip.state_dict()})
    rows = text_rows(clip, tiny.tokenizer(), list(ScenesData.class_names), list(ScenesData.templates))
    assert torch.equal(between["head.weight"], rows * clip.logit_scale.detach().exp())  # of the text tower between
    with pytest.raises(UserError, match="without a text tower of its own, and this run needs one"):
        do(work / "lacks", *FLYP, f"init={work / 'on'}")


@pytest.mark.slow
def test_stopped_at_every_point(work, stops) -> None:  # noqa: F811
    seen, wanted = stops
    settings = (*FLYP, "trainer.accumulate_grad_batches=2", "beta=1", "mask=object")
    expected = do(work / "whole", *settings)
    points = list(dict.fromkeys(seen))
    assert go_on_until_done(work / "stopped", settings, wanted, points) == expected["holdout"]
    assert same_results(work / "whole", work / "stopped")


@pytest.mark.slow
def test_a_run_that_goes_on_after_its_last_step_has_the_head_of_its_text_tower(work, monkeypatch) -> None:  # noqa: F811
    """Without a hold-out nothing is evaluated in training, and the last state is older than the head."""
    settings = (*FLYP, "data.holdout=0")
    do(work / "unheld", *settings)
    with monkeypatch.context() as patch:
        patch.setattr("robustft.experiment.finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            do(work / "unheld-stopped", *settings)
    do(work / "unheld-stopped", *settings, resume=True)
    assert same_results(work / "unheld", work / "unheld-stopped")
    ours, theirs = (load_file(work / name / "model.safetensors") for name in ("unheld", "unheld-stopped"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("model", ["model=timm", "model=timm model.pretrained=timm"])
def test_without_a_text_tower_it_is_refused(tmp_path, model: str) -> None:
    typed = [*model.split(), "model.architecture=vit_small_patch16_224", "method=flyp", "data=scenes"]
    with pytest.raises(
        UserError, match="method=flyp trains a text tower too, and model=vit_small_patch16_224 has none"
    ):
        checks.check(composed(*typed))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (("mask=object",), "mask=object does nothing with beta=0"),
        (("temperature=3",), "temperature=3 does nothing with method=flyp"),
        (("method.positives=all",), "method.positives=all: expected one of diagonal, class"),
        (("disagreement=2",), "disagreement=2 does nothing with method=flyp"),
    ],
)
def test_mistakes_are_one_line(typed: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        checks.check(composed("method=flyp", *typed), dict(setting.split("=") for setting in typed))


def test_a_batch_of_one_image_is_refused(work) -> None:  # noqa: F811
    with pytest.raises(UserError, match="data.batch_size=1: an image is set against the prompts of others"):
        do(work / "alone", *FLYP, "data.batch_size=1")


def two_processes_against_one(folder: Path, *settings: str) -> None:
    """The gradients of the first step, in float64, of one process, of two, and of two with two micro-batches each."""
    found = []
    for number, devices in enumerate((1, 2, 2)):
        several = ("trainer.devices=2", "trainer.strategy=ddp") if devices == 2 else ()
        parts = ("trainer.accumulate_grad_batches=2",) if number == 2 else ()
        out = folder / str(number)
        out.mkdir()
        line = [sys.executable, "-m", "tests.methods.first_gradients", str(out), *settings, *several, *parts]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ROBUSTFT_CACHE": str(folder / "cache")}
        answer = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
        assert answer.returncode == 0, answer.stderr[-3000:]
        found.append(load_file(out / FILE))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in found[0].items():
            assert gradient.abs().max() > 0, name
            assert (gradient - other[name]).abs().max() < 1e-11 * max(1e-2, float(gradient.abs().max())), name


@pytest.mark.slow
@pytest.mark.parametrize("settings", [("method.positives=class",), ("beta=3", "mask=object", "fill=none")], ids=str)
def test_two_processes_give_the_gradients_of_one(work, tmp_path, settings) -> None:  # noqa: F811
    two_processes_against_one(tmp_path, *FLYP, *settings, f"init={tuned(work)}")


@pytest.mark.slow
def test_two_devices_give_the_numbers_of_one(tmp_path) -> None:
    """Through the command: what is trained, evaluated and saved."""
    weights, results = [], []
    for devices in (1, 2):
        several = ("trainer.devices=2", "trainer.strategy=ddp") if devices == 2 else ()
        typed = (*FLYP, *several, f"hydra.run.dir=d{devices}")
        answer = command(tmp_path, *typed, ROBUSTFT_CACHE=str(tmp_path / f"cache{devices}"))
        assert answer.returncode == 0, answer.stderr[-3000:]
        results.append(json.loads((tmp_path / f"d{devices}" / "results.json").read_text()))
        weights.append(load_file(tmp_path / f"d{devices}" / "model.safetensors"))
    assert counts(results[0]["holdout"]) == counts(results[1]["holdout"])
    for name, value in weights[0].items():
        limit = 5e-5 if name == "head.weight" else 5e-6  # the head is ten and more times as large
        assert difference(name, value, weights[1][name]) < limit, name


@pytest.mark.parametrize(
    "settings", [("method=flyp",), ("method=flyp", "method.positives=class"), ("method=carot",)], ids=str
)
def test_towers_that_answer_in_bfloat16(work, settings) -> None:  # noqa: F811
    """Under autocast not every image tower projects in float32; the loss is that of its features as they are."""
    method = method_of(prepared(work / "half", *settings))
    images, texts = torch.randn(4, 96).bfloat16().requires_grad_(), torch.randn(4, 96)
    theirs = {"labels": torch.tensor([0, 1, 1, 2]), "images": torch.randn(4, 96).bfloat16(), "texts": texts}
    with torch.autocast("cpu", torch.bfloat16):
        loss = method._terms({"images": images, "texts": texts}, theirs)["loss"]
    loss.backward()
    ours = {"images": images.detach().float().requires_grad_(), "texts": texts}
    expected = method.objective(ours, theirs | {"images": theirs["images"].float()})["loss"]
    expected.backward()
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert torch.equal(images.grad, ours["images"].grad.bfloat16())
